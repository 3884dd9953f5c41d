//! One file a subcommand: what it reads, does and prints.

mod bench;
mod devices;
mod evaluate;
mod generate;
mod inspect;
mod quantize;

pub use bench::bench;
pub use devices::devices;
pub use evaluate::evaluate;
pub use generate::generate;
pub use inspect::inspect;
pub use quantize::quantize;

/// Prints to stdout; a closed pipe is not an error.
fn print(text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
