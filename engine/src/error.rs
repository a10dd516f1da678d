//! Why an engine could not do what it was asked for.

use std::error::Error;
use std::fmt::{self, Display};

use pagedraft_spec_decode::ExecuteError;

/// Why an engine could not be opened, a request not be taken, or a step not be run. `{}` shows what failed, `{:#}` also what is behind
/// it, joined by colons.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// An option, a file or a request is not as it has to be. Whoever gave it can correct it.
    #[error(transparent)]
    Input(Report),
    /// The engine, its device or a file failed.
    #[error(transparent)]
    Failed(Report),
    /// A step failed only because [`EngineOptions::interrupt`](crate::session::EngineOptions::interrupt) was set. Nothing of it was
    /// applied, and nothing of it is in the trace. The session can go on once the flag is clear: the step's requests are computed
    /// again.
    #[error(transparent)]
    Interrupted(ExecuteError),
}

/// What most of the engine returns.
pub(crate) type Result<T, E = EngineError> = std::result::Result<T, E>;

impl EngineError {
    /// An error of whoever gave something.
    pub(crate) fn input(error: impl Into<Report>) -> Self {
        Self::Input(error.into())
    }

    /// The same, with what to do about it.
    pub(crate) fn input_hint(error: impl Into<Report>, hint: impl Into<String>) -> Self {
        Self::input(error).hint(hint)
    }

    /// A failure.
    pub(crate) fn failed(error: impl Into<Report>) -> Self {
        Self::Failed(error.into())
    }

    /// Says that whoever gave what this is about can correct it.
    pub(crate) fn into_input(self) -> Self {
        match self {
            Self::Input(report) | Self::Failed(report) => Self::Input(report),
            Self::Interrupted(_) => self,
        }
    }

    /// Says what to do about it.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        match self {
            Self::Input(report) => Self::Input(Report { hint: Some(hint.into()), ..report }),
            other => other,
        }
    }

    /// Says in connection with what it happened.
    pub(crate) fn context(self, what: impl Display) -> Self {
        match self {
            Self::Input(report) => Self::Input(report.context(what)),
            Self::Failed(report) => Self::Failed(report.context(what)),
            Self::Interrupted(_) => self,
        }
    }

    /// Whether a step failed only because it was interrupted.
    #[must_use]
    pub fn is_interrupt(&self) -> bool {
        matches!(self, Self::Interrupted(_))
    }
}

impl From<ExecuteError> for EngineError {
    fn from(error: ExecuteError) -> Self {
        if error.is_interrupt() { Self::Interrupted(error) } else { Self::failed(Report::from_part(error)) }
    }
}

/// What failed, what is behind it, and perhaps what to do about it.
#[derive(Debug)]
pub struct Report {
    /// None where `cause` says it all.
    what: Option<String>,
    cause: Option<Box<dyn Error + Send + Sync>>,
    hint: Option<String>,
}

impl Report {
    fn from_part(error: impl Error + Send + Sync + 'static) -> Self {
        Self { what: None, cause: Some(Box::new(error)), hint: None }
    }

    fn context(mut self, what: impl Display) -> Self {
        let hint = self.hint.take();
        Self { what: Some(what.to_string()), cause: Some(Box::new(self)), hint }
    }

    /// What to do about it, where that is not plain.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl From<String> for Report {
    fn from(what: String) -> Self {
        Self { what: Some(what), cause: None, hint: None }
    }
}

impl From<&str> for Report {
    fn from(what: &str) -> Self {
        Self::from(what.to_owned())
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.what, &self.cause) {
            (Some(what), _) => f.write_str(what)?,
            (None, Some(cause)) => write!(f, "{cause}")?,
            (None, None) => {}
        }
        let mut next = self.source().filter(|_| f.alternate());
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}

impl Error for Report {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let cause = self.cause.as_deref()?;
        if self.what.is_some() { Some(cause) } else { cause.source() }
    }
}

/// Errors of the engine's parts. Each is a failure until somebody says that it was the input.
macro_rules! parts {
    ($($part:ty),+ $(,)?) => {$(
        impl From<$part> for EngineError {
            fn from(error: $part) -> Self {
                Self::failed(Report::from_part(error))
            }
        }
    )+};
}

parts!(
    pagedraft_attention::AttentionError,
    pagedraft_attention::isa::IsaError,
    pagedraft_block_manager::Error,
    pagedraft_model::ModelError,
    pagedraft_model::cuda::CudaError,
    pagedraft_scheduler::ConfigError,
    pagedraft_scheduler::Error,
    pagedraft_scheduler::SubmitError,
    pagedraft_spec_decode::proposer::ProposerError,
    pagedraft_spec_decode::sampling::SamplingError,
    pagedraft_workloads::Error,
    safetensors::SafeTensorError,
    serde_json::Error,
    std::io::Error,
);

/// Says in connection with what something failed.
pub(crate) trait Context<T> {
    /// The same result; an error says that it happened there.
    fn context(self, what: impl Display) -> Result<T>;

    /// The same, where saying so takes work.
    fn with_context<C: Display>(self, what: impl FnOnce() -> C) -> Result<T>;
}

impl<T, E: Into<EngineError>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl Display) -> Result<T> {
        self.map_err(|error| error.into().context(what))
    }

    fn with_context<C: Display>(self, what: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|error| error.into().context(what()))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, what: impl Display) -> Result<T> {
        self.ok_or_else(|| EngineError::failed(what.to_string()))
    }

    fn with_context<C: Display>(self, what: impl FnOnce() -> C) -> Result<T> {
        self.ok_or_else(|| EngineError::failed(what().to_string()))
    }
}

/// Returns a failure with this text.
macro_rules! bail {
    ($($text:tt)+) => { return Err($crate::error::EngineError::failed(format!($($text)+))) };
}
pub(crate) use bail;

/// Returns a failure with this text unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($text:tt)+) => { if !$holds { $crate::error::bail!($($text)+) } };
}
pub(crate) use ensure;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_what_is_behind_it_once_and_keeps_its_kind_and_hint() {
        let disk = || Report::from_part(std::io::Error::other("no such thing"));
        let error =
            EngineError::input_hint(disk(), "make one").context("x can't be read").context("the model");
        assert_eq!(error.to_string(), "the model");
        assert_eq!(format!("{error:#}"), "the model: x can't be read: no such thing");
        let EngineError::Input(report) = error else { panic!("{error:?}") };
        assert_eq!(report.hint(), Some("make one"));
        assert!(matches!(EngineError::failed(disk()).context("x"), EngineError::Failed(_)));
    }
}
