//! What the handlers of requests share.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use pagedraft_engine::handle::EngineHandle;
use tokio::sync::watch;

use super::auth::Keys;
use super::error::ApiError;
use super::template::ChatTemplate;

/// Texts of more bytes than this are tokenised on another thread, so that the answers of others do not wait: tokenising takes about
/// a microsecond for each 2 bytes.
const SHORT_TEXT: usize = 4096;

/// How much of a client is borne.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most bytes of a body.
    pub body_bytes: usize,
    /// The most samples that a request may ask for, of all its prompts together. More than the engine lets wait would be
    /// refused by it, after memory and time were taken for each of them.
    pub samples: usize,
    /// The longest that a body may take to come.
    pub body_time: Duration,
    /// The longest that the head of a request may take to come, and that a connection may lie idle.
    pub idle_time: Duration,
    /// The longest that a client may take nothing of what it is sent.
    pub stalled_time: Duration,
    /// How long requests may go on after the server was told to end.
    pub grace: Duration,
}

/// 32 MiB, 2,048 samples, a minute for each wait, and half a minute of grace.
impl Default for Limits {
    fn default() -> Self {
        let minute = Duration::from_secs(60);
        Self {
            body_bytes: 32 << 20,
            samples: 2048,
            body_time: minute,
            idle_time: minute,
            stalled_time: minute,
            grace: Duration::from_secs(30),
        }
    }
}

/// A server's engine, and what it was told at its start.
pub struct App {
    pub engine: EngineHandle,
    /// The names by which the model is asked for; the first one stands in answers.
    pub names: Vec<String>,
    /// How the messages of a chat become a prompt.
    pub template: Option<ChatTemplate>,
    pub keys: Keys,
    pub limits: Limits,
    /// The most tokens that prompt and answer can have together.
    pub capacity: u32,
    /// Seconds from 1970 until the server started.
    pub started: u64,
    /// Becomes true when requests must end that are still not done after the time of grace.
    pub cut: watch::Receiver<bool>,
    /// Becomes true when the server was told to end.
    pub draining: watch::Receiver<bool>,
    pub serial: Serial,
}

impl App {
    /// The name of the model.
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// Whether the model that a request asks for is the one that is here. One that names none takes what there is.
    ///
    /// # Errors
    ///
    /// No model has this name.
    pub fn check_model(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked {
            Some(asked) if !self.names.iter().any(|name| name == asked) => {
                Err(ApiError::no_such_model(asked, &self.names))
            }
            _ => Ok(()),
        }
    }

    /// The token ids of a text.
    ///
    /// # Errors
    ///
    /// The model has no tokenizer, or it can't write the text.
    pub async fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, ApiError> {
        let Some(tokenizer) = self.engine.tokenizer() else {
            let name = self.name();
            return Err(ApiError::bad(format!("{name} has no tokenizer: give the prompt as token ids")));
        };
        let encoded = if text.len() <= SHORT_TEXT {
            tokenizer.encode(text, add_special_tokens)
        } else {
            let (tokenizer, text) = (tokenizer.clone(), text.to_owned());
            let encoded = tokio::task::spawn_blocking(move || tokenizer.encode(&text, add_special_tokens));
            encoded.await.map_err(|error| ApiError::failed(error.to_string()))?
        };
        encoded.map_err(|error| ApiError::bad(format!("the prompt can't be tokenised: {error}")))
    }
}

/// Numbers of requests, and seeds for those that name none.
#[derive(Debug)]
pub struct Serial {
    random: RandomState,
    next: AtomicU64,
}

impl Default for Serial {
    /// Starts from numbers that the system draws, so that two servers, or two starts of one, do not repeat each other.
    fn default() -> Self {
        Self { random: RandomState::new(), next: AtomicU64::new(0) }
    }
}

impl Serial {
    /// A number that no other request of this server has, and that looks random.
    pub fn draw(&self) -> u64 {
        self.random.hash_one(self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
