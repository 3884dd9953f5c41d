//! AWQ. To come.
