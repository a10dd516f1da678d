//! Opens a remote pool by its URL.

use std::time::Duration;

use super::directory_pool::DirectoryPool;
use super::pool::{Pool, TierId};
use super::watched::Watched;
use crate::error::ModelError;

/// Opens the pool that a URL names: `file:///DIRECTORY` or, in a program built with the feature `remote-pool`, `redis://HOST:PORT` or
/// `s3://BUCKET/DIRECTORY`. It is asked from a thread of its own, and given up when it takes longer than `patience` to answer.
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
        #[cfg(feature = "remote-pool")]
        Some(("redis", _)) => Box::new(super::redis_pool::RedisPool::open(url, patience).map_err(refuse)?),
        #[cfg(feature = "remote-pool")]
        Some(("s3", _)) => Box::new(super::object_pool::ObjectPool::open(url, patience).map_err(refuse)?),
        #[cfg(not(feature = "remote-pool"))]
        Some(("redis" | "s3", _)) => {
            let why = "this program was built without such pools; build it with --features remote-pool, or use file:///DIRECTORY";
            return Err(refuse(why.to_owned()));
        }
        _ => {
            let known = "known are file:///DIRECTORY, redis://HOST:PORT and s3://BUCKET/DIRECTORY";
            return Err(refuse(known.to_owned()));
        }
    };
    Ok((TierId::RemotePool, Box::new(Watched::new(pool, patience)?)))
}
