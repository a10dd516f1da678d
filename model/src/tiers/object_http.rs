//! How object stores are reached: HTTP over blocking sockets, signed by programs without C.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    CryptoProvider, DigestAlgorithm, DigestContext, HmacContext, HttpClient, HttpConnector, HttpError,
    HttpErrorKind, HttpRequest, HttpResponse, HttpService, Signer, SigningAlgorithm,
};
use object_store::{Error, Result};
use sha2::{Digest, Sha256};
use ureq::Agent;

fn unsupported(what: String) -> Error {
    Error::NotSupported { source: what.into() }
}

/// Connects to stores, each request of which takes no longer than `patience`.
#[derive(Debug)]
pub(super) struct Connector {
    pub patience: Duration,
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> Result<HttpClient> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(self.patience))
            .build();
        Ok(HttpClient::new(Client(config.into())))
    }
}

#[derive(Debug)]
struct Client(Agent);

fn kind(error: &ureq::Error) -> HttpErrorKind {
    match error {
        ureq::Error::Timeout(_) => HttpErrorKind::Timeout,
        ureq::Error::Io(_) | ureq::Error::ConnectionFailed | ureq::Error::HostNotFound => {
            HttpErrorKind::Connect
        }
        _ => HttpErrorKind::Unknown,
    }
}

#[async_trait::async_trait]
impl HttpService for Client {
    /// Blocks the thread, which belongs to the pool.
    async fn call(&self, request: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let failed = |error: ureq::Error| HttpError::new(kind(&error), error);
        let answer = match body.is_empty() && !matches!(head.method.as_str(), "PUT" | "POST") {
            true => self.0.run(http::Request::from_parts(head, ())),
            false => self.0.run(http::Request::from_parts(head, &body[..])),
        };
        let (head, mut body) = answer.map_err(failed)?.into_parts();
        let bytes = body.with_config().limit(u64::MAX).read_to_vec().map_err(failed)?;
        Ok(HttpResponse::from_parts(head, bytes.into()))
    }
}

/// SHA-256, and what signs requests with it.
#[derive(Debug)]
pub(super) struct Crypto;

impl CryptoProvider for Crypto {
    fn digest(&self, algorithm: DigestAlgorithm) -> Result<Box<dyn DigestContext>> {
        match algorithm {
            DigestAlgorithm::Sha256 => Ok(Box::new(Hash(Sha256::new(), Vec::new()))),
            other => Err(unsupported(format!("{other:?}"))),
        }
    }

    fn hmac(&self, algorithm: DigestAlgorithm, secret: &[u8]) -> Result<Box<dyn HmacContext>> {
        let DigestAlgorithm::Sha256 = algorithm else { return Err(unsupported(format!("{algorithm:?}"))) };
        let own = Hmac::<Sha256>::new_from_slice(secret).map_err(|error| unsupported(error.to_string()))?;
        Ok(Box::new(Hash(own, Vec::new())))
    }

    fn sign(&self, algorithm: SigningAlgorithm, _: &[u8]) -> Result<Box<dyn Signer>> {
        Err(unsupported(format!("{algorithm:?}")))
    }
}

/// A hash that is being computed, and its value once it is.
struct Hash<H>(H, Vec<u8>);

impl DigestContext for Hash<Sha256> {
    fn update(&mut self, data: &[u8]) {
        Digest::update(&mut self.0, data);
    }

    fn finish(&mut self) -> Result<&[u8]> {
        self.1 = self.0.finalize_reset().to_vec();
        Ok(&self.1)
    }
}

impl HmacContext for Hash<Hmac<Sha256>> {
    fn update(&mut self, data: &[u8]) {
        Mac::update(&mut self.0, data);
    }

    fn finish(&mut self) -> Result<&[u8]> {
        self.1 = self.0.clone().finalize().into_bytes().to_vec();
        Ok(&self.1)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails says where")]

    use super::*;

    #[test]
    fn hashes_and_signatures_are_those_of_their_standards() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        // FIPS 180-2, appendix B.1.
        let mut digest = Crypto.digest(DigestAlgorithm::Sha256).unwrap();
        digest.update(b"ab");
        digest.update(b"c");
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex(digest.finish().unwrap()), expected);
        // RFC 4231, case 2.
        let mut hmac = Crypto.hmac(DigestAlgorithm::Sha256, b"Jefe").unwrap();
        hmac.update(b"what do ya want ");
        hmac.update(b"for nothing?");
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex(hmac.finish().unwrap()), expected);
    }
}
