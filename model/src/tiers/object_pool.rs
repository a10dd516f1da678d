//! A pool in an object store that speaks S3's protocol.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, RetryConfig};
use tokio::runtime::{Builder, Runtime};

use super::object_http::{Connector, Crypto};
use super::pool::{Key, Pool, PoolError};

/// A pool of one object for each key, under a name of its own in a bucket. The objects are removed with the pool.
pub struct ObjectPool {
    store: Arc<dyn ObjectStore>,
    runtime: Runtime,
    directory: String,
    keys: HashSet<Key>,
}

impl ObjectPool {
    /// A pool in the bucket of a URL such as `s3://bucket/directory`. Endpoint, region and credentials come from the environment
    /// (`AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`). Only HTTP is spoken.
    ///
    /// # Errors
    ///
    /// Why nothing can be written there.
    pub fn open(url: &str, patience: Duration) -> Result<Self, String> {
        let place = url.strip_prefix("s3://").unwrap_or(url);
        let (bucket, within) = place.split_once('/').unwrap_or((place, ""));
        if bucket.is_empty() {
            return Err("the bucket is missing; give s3://BUCKET or s3://BUCKET/DIRECTORY".to_owned());
        }
        let said = |error: Error| {
            format!(
                "the store cannot be used: {error}; name an http:// endpoint and its credentials in AWS_ENDPOINT_URL, \
                 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        };
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_allow_http(true)
            // A full store would let every cell wait for a second try; a fault costs no more than a computation.
            .with_retry(RetryConfig { max_retries: 0, retry_timeout: patience, ..RetryConfig::default() })
            .with_crypto_provider(Arc::new(Crypto))
            .with_http_connector(Connector { patience })
            .build()
            .map_err(said)?;
        let runtime =
            Builder::new_current_thread().enable_time().build().map_err(|error| error.to_string())?;
        // Two engines that share a bucket draw different numbers.
        let number = RandomState::new().build_hasher().finish();
        let directory = format!("{}/pagedraft-{number:016x}", within.trim_end_matches('/'));
        let pool = Self { store: Arc::new(store), runtime, directory, keys: HashSet::new() };
        let probe = Path::from(format!("{}/open", pool.directory));
        let tried = async {
            pool.store.put(&probe, Vec::new().into()).await?;
            pool.store.delete(&probe).await
        };
        pool.runtime.block_on(tried).map_err(said)?;
        Ok(pool)
    }

    fn path(&self, key: Key) -> Path {
        Path::from(format!("{}/{key}", self.directory))
    }
}

fn failed(error: Error) -> PoolError {
    if let Error::NotFound { .. } = error {
        return PoolError::Missing;
    }
    let text = error.to_string();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["507", "StorageFull", "QuotaExceeded"]) {
        PoolError::Full
    } else if says(&["timeout", "timed out"]) {
        PoolError::Timeout
    } else {
        PoolError::Failed(text)
    }
}

impl Pool for ObjectPool {
    fn put(&mut self, key: Key, bytes: &[u8]) -> Result<(), PoolError> {
        self.keys.insert(key);
        let path = self.path(key);
        self.runtime.block_on(self.store.put(&path, bytes.to_vec().into())).map_err(failed)?;
        Ok(())
    }

    fn get(&mut self, key: Key, into: &mut [u8]) -> Result<(), PoolError> {
        let path = self.path(key);
        let got = async {
            let found = self.store.get(&path).await.map_err(failed)?;
            let length = |found| PoolError::Length { found, expected: into.len() };
            if found.meta.size != into.len() as u64 {
                return Err(length(usize::try_from(found.meta.size).unwrap_or(usize::MAX)));
            }
            let bytes = found.bytes().await.map_err(failed)?;
            if bytes.len() != into.len() {
                return Err(length(bytes.len()));
            }
            into.copy_from_slice(&bytes);
            Ok(())
        };
        self.runtime.block_on(got)
    }

    fn forget(&mut self, key: Key) {
        if self.keys.remove(&key) {
            let path = self.path(key);
            // An object that is gone already is what was asked for.
            let _ = self.runtime.block_on(self.store.delete(&path));
        }
    }
}

impl Drop for ObjectPool {
    fn drop(&mut self) {
        let keys = std::mem::take(&mut self.keys);
        let paths: Vec<_> = keys.into_iter().map(|key| Ok(self.path(key))).collect();
        let deleted = self.store.delete_stream(futures_util::stream::iter(paths).boxed());
        // What a store that does not answer keeps is left to the rules of its bucket.
        self.runtime.block_on(deleted.for_each(|_| async {}));
    }
}
