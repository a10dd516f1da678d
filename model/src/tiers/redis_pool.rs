//! A pool in a Redis server.

use std::time::Duration;

use redis::{Client, Connection, ErrorKind, RedisError, RedisResult, cmd};

use super::pool::{Key, Pool, PoolError};

/// After so many seconds the server drops what an engine that was killed left behind.
const LEFT_BEHIND: u64 = 24 * 60 * 60;

/// A pool in one hash of a Redis server, a field for each key. The hash is removed with the pool.
pub struct RedisPool {
    client: Client,
    patience: Duration,
    /// `None` after a fault, until the next request connects anew.
    connection: Option<Connection>,
    hash: String,
}

impl RedisPool {
    /// Connects to the server of a URL such as `redis://127.0.0.1:6379`.
    ///
    /// # Errors
    ///
    /// Why there is no connection.
    pub fn open(url: &str, patience: Duration) -> Result<Self, String> {
        let said = |error: RedisError| format!("there is no Redis server to be had: {error}");
        let client = Client::open(url).map_err(said)?;
        let mut pool = Self { client, patience, connection: None, hash: String::new() };
        let number: u64 =
            pool.ask(|connection| cmd("INCR").arg("pagedraft:pools").query(connection)).map_err(said)?;
        pool.hash = format!("pagedraft:pool:{number}");
        Ok(pool)
    }

    fn ask<T>(&mut self, ask: impl FnOnce(&mut Connection) -> RedisResult<T>) -> RedisResult<T> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let connection = self.client.get_connection_with_timeout(self.patience)?;
                connection.set_read_timeout(Some(self.patience))?;
                connection.set_write_timeout(Some(self.patience))?;
                self.connection.insert(connection)
            }
        };
        let answer = ask(connection);
        if answer.as_ref().is_err_and(|error| error.is_io_error() || error.is_connection_dropped()) {
            // A late answer must not be taken for that of a later request.
            self.connection = None;
        }
        answer
    }
}

fn failed(error: RedisError) -> PoolError {
    if error.is_timeout() {
        return PoolError::Timeout;
    }
    if error.kind() == ErrorKind::Io {
        return PoolError::Failed(format!("the connection failed: {error}"));
    }
    let text = error.to_string();
    match error.into_server_errors() {
        Some(errors) if errors.iter().any(|(_, error)| error.code() == "OOM") => PoolError::Full,
        _ => PoolError::Failed(text),
    }
}

impl Pool for RedisPool {
    fn put(&mut self, key: Key, bytes: &[u8]) -> Result<(), PoolError> {
        let hash = self.hash.clone();
        self.ask(|connection| {
            redis::pipe()
                .cmd("HSET")
                .arg(&hash)
                .arg(key.to_string())
                .arg(bytes)
                .ignore()
                .cmd("EXPIRE")
                .arg(&hash)
                .arg(LEFT_BEHIND)
                .ignore()
                .query::<()>(connection)
        })
        .map_err(failed)
    }

    fn get(&mut self, key: Key, into: &mut [u8]) -> Result<(), PoolError> {
        let hash = self.hash.clone();
        let found: Option<Vec<u8>> = self
            .ask(|connection| cmd("HGET").arg(&hash).arg(key.to_string()).query(connection))
            .map_err(failed)?;
        let found = found.ok_or(PoolError::Missing)?;
        if found.len() != into.len() {
            return Err(PoolError::Length { found: found.len(), expected: into.len() });
        }
        into.copy_from_slice(&found);
        Ok(())
    }

    fn forget(&mut self, key: Key) {
        let hash = self.hash.clone();
        // What stays is removed with the pool.
        let _ = self.ask(|connection| cmd("HDEL").arg(&hash).arg(key.to_string()).query::<()>(connection));
    }
}

impl Drop for RedisPool {
    fn drop(&mut self) {
        let hash = self.hash.clone();
        // If the server does not answer any more, it drops the hash itself after a day.
        let _ = self.ask(|connection| cmd("UNLINK").arg(&hash).query::<()>(connection));
    }
}
