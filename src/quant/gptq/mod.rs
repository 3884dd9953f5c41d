//! GPTQ. To come.
