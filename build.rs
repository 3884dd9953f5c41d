//! Tells the linker where the built programs find libtorch: beside themselves, or where it was at build time.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    // target/release/nibble, target/release/deps/<test>, and an installed `bin/nibble` beside `libtorch/`.
    for up in ["../..", "../../..", ".."] {
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/{up}/libtorch/torch/lib");
    }
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
    }
}
