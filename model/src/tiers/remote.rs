//! Opens a remote pool by its URL.

use std::time::Duration;

use super::directory_pool::DirectoryPool;
use super::pool::{Pool, TierId};
use super::watched::Watched;
use crate::error::ModelError;

/// Opens the pool that a URL names: `file:///DIRECTORY` or, in a program built with the feature of
/// that name, `redis://HOST:PORT` (`redis-pool`) or `s3://BUCKET/DIRECTORY` (`s3-pool`). It is asked from a thread of its own, and given up when it takes longer than `patience` to answer.
///
/// # Errors
///
/// Another URL, a directory that cannot be written, or a server that does not answer.
pub fn open_remote(url: &str, patience: Duration) -> Result<(TierId, Box<dyn Pool>), ModelError> {
    let refuse = |why: String| ModelError::NoDevice { what: format!("--kv-remote-pool {url}: {why}") };
    let pool: Box<dyn Pool> = match url.split_once("://") {
        Some(("file", path)) if path.starts_with('/') => {
            Box::new(DirectoryPool::open(path.as_ref()).map_err(refuse)?)
        }
        Some(("file", _)) => {
            return Err(refuse("give the directory from the root on, as file:///tmp/pool".to_owned()));
        }
        #[cfg(feature = "redis-pool")]
        Some(("redis", _)) => Box::new(super::redis_pool::RedisPool::open(url, patience).map_err(refuse)?),
        #[cfg(feature = "s3-pool")]
        Some(("s3", _)) => Box::new(super::object_pool::ObjectPool::open(url, patience).map_err(refuse)?),
        #[cfg(not(feature = "redis-pool"))]
        Some(("redis", _)) => return Err(refuse(left_out("redis-pool"))),
        #[cfg(not(feature = "s3-pool"))]
        Some(("s3", _)) => return Err(refuse(left_out("s3-pool"))),
        _ => {
            let known = "known are file:///DIRECTORY, redis://HOST:PORT and s3://BUCKET/DIRECTORY";
            return Err(refuse(known.to_owned()));
        }
    };
    Ok((TierId::RemotePool, Box::new(Watched::new(pool, patience)?)))
}

/// What is said of a pool that this program was built without.
#[cfg(any(not(feature = "redis-pool"), not(feature = "s3-pool")))]
fn left_out(feature: &str) -> String {
    format!(
        "this program was built without such pools; build it with --features {feature}, or use file:///DIRECTORY"
    )
}
