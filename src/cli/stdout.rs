//! Writes to standard output, which may be closed.

use std::io::Write;

/// The error of writing to standard output.
#[derive(Debug, thiserror::Error)]
#[error("can't write to standard output: {0}")]
struct Stdout(std::io::Error);

/// Writes a text and flushes.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Stdout(e).into())
}

/// Whether the error means that nobody reads standard output any more (`| head`).
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let closed = |stdout: &Stdout| stdout.0.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().filter_map(|cause| cause.downcast_ref()).any(closed)
}
