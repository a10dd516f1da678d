//! The address of a server.

use std::fmt;
use std::str::FromStr;

use hyper::Uri;

/// Where a server is, as `http://HOST:PORT`, and the path before its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// As the header `Host` has it.
    pub authority: String,
    pub host: String,
    pub port: u16,
    /// The path to which `/completions` and `/models` are added, which ends with `/v1`.
    base: String,
}

impl Address {
    /// The path of an endpoint, as `/v1/completions`.
    pub fn path(&self, endpoint: &str) -> String {
        format!("{}/{endpoint}", self.base)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path("completions"))
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|_| format!("{text:?} is no URL: use http://HOST:PORT"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err("https is not spoken here: name the server's http port, or put a proxy in front that speaks https".to_owned());
            }
            _ => return Err("the URL must begin with http://, as in http://127.0.0.1:8000".to_owned()),
        }
        let (Some(authority), Some(host)) = (uri.authority(), uri.host().filter(|host| !host.is_empty()))
        else {
            return Err("the URL names no host: use http://HOST:PORT".to_owned());
        };
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err("the URL has more than a host, a port and a path: give keys with --endpoint-api-key"
                .to_owned());
        }
        let base = uri.path().trim_end_matches('/');
        let base = base.strip_suffix("/completions").unwrap_or(base);
        let base = base.strip_suffix("/v1").unwrap_or(base);
        Ok(Self {
            authority: authority.to_string(),
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(80),
            base: format!("{base}/v1"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_with_or_without_its_path() {
        for (text, port, path) in [
            ("http://127.0.0.1:8000", 8000, "/v1/completions"),
            ("http://127.0.0.1:8000/", 8000, "/v1/completions"),
            ("http://127.0.0.1/v1", 80, "/v1/completions"),
            ("http://127.0.0.1:1/v1/completions", 1, "/v1/completions"),
            ("http://127.0.0.1:1/llm/v1/", 1, "/llm/v1/completions"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.host.as_str(), address.port), ("127.0.0.1", port), "{text}");
            assert_eq!(address.path("completions"), path, "{text}");
        }
        let v6: Address = "http://[::1]:9".parse().unwrap();
        assert_eq!((v6.host.as_str(), v6.to_string().as_str()), ("::1", "http://[::1]:9/v1/completions"));
    }

    #[test]
    fn what_is_no_address_is_told() {
        for (text, told) in [
            ("https://x", "https"),
            ("x:8000", "http://"),
            ("", "no URL"),
            ("http://", "no URL"),
            ("http://a:b@x", "--endpoint-api-key"),
            ("http://x/?key=1", "--endpoint-api-key"),
            ("ftp://x", "http://"),
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
