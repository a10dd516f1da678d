//! Names the argument that is not UTF-8, because clap only says that there is one.

use std::ffi::OsString;

use clap::Parser;
use clap::error::ErrorKind;

use super::Cli;

/// The message for `arguments` that clap refused with `error` because a text is not UTF-8. It names the
/// flag and its value. Paths may hold any bytes, so the first argument that is not UTF-8 is not always the
/// one that was refused.
pub fn told(error: &clap::Error, arguments: Vec<OsString>) -> Option<String> {
    if error.kind() != ErrorKind::InvalidUtf8 {
        return None;
    }
    let text = |argument: &OsString| argument.to_string_lossy().into_owned();
    let refused = (0..arguments.len()).filter(|&i| arguments[i].to_str().is_none()).find(|&refused| {
        let mended = arguments.iter().enumerate().map(|(i, argument)| {
            if i == refused { argument.clone() } else { OsString::from(text(argument)) }
        });
        Cli::try_parse_from(mended).is_err_and(|error| error.kind() == ErrorKind::InvalidUtf8)
    })?;
    let argument = text(&arguments[refused]);
    let (flag, value) = match argument.split_once('=') {
        Some((flag, value)) if flag.starts_with("--") => (flag.to_owned(), value.to_owned()),
        _ => match arguments.get(refused.wrapping_sub(1)).map(text) {
            Some(flag) if flag.starts_with("--") => (flag, argument),
            _ => return Some(format!("error: the argument {argument:?} is not UTF-8 text\n")),
        },
    };
    Some(format!("error: {flag}: its value {value:?} is not UTF-8 text\n"))
}
