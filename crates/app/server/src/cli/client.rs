//! The command line as a client of a running node.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, header};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

use crate::error::{Code, Error, Result};
use crate::files;

/// How to reach the node.
#[derive(Debug, clap::Args)]
pub(crate) struct ServerArgs {
    /// Address of the node.
    #[arg(long, global = true, env = "MAINSTAY_SERVER_URL", default_value = "http://127.0.0.1:4600")]
    server: String,
    #[command(flatten)]
    access: AccessArgs,
}

/// What a node asks of its clients.
#[derive(Debug, clap::Args)]
pub(crate) struct AccessArgs {
    /// File with the token; else MAINSTAY_TOKEN.
    #[arg(long, global = true, env = "MAINSTAY_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Certificate (PEM) to trust besides the system's, for a node with a certificate of its own.
    #[arg(long, global = true, env = "MAINSTAY_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Certificate and key (PEM, one file) to present, for a node that asks its clients for one.
    #[arg(long, global = true, env = "MAINSTAY_IDENTITY", value_name = "FILE")]
    identity: Option<PathBuf>,
}

/// An answer of the node, or of whatever else is at its address.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) etag: Option<String>,
    pub(crate) body: Value,
    pub(crate) text: String,
    /// Where it was asked.
    base: String,
    /// Where it leads to instead.
    location: Option<String>,
}

impl Answer {
    fn of(base: &str, status: u16, headers: &HeaderMap, text: String) -> Self {
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        let header = |name| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (etag, location) = (header(header::ETAG), header(header::LOCATION));
        Self { status, etag, body, text, base: base.to_owned(), location }
    }

    /// The rows of a list.
    ///
    /// # Errors
    /// When it is none: an empty list would be believed.
    pub(crate) fn items(&self) -> Result<&[Value]> {
        self.body["items"].as_array().map(Vec::as_slice).ok_or_else(|| self.stranger())
    }

    /// A text that a node always puts there.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn field(&self, name: &str) -> Result<&str> {
        self.body[name].as_str().ok_or_else(|| self.stranger())
    }

    /// What answered is something else: another program, or a proxy in front of the node.
    fn stranger(&self) -> Error {
        let (base, status) = (&self.base, self.status);
        let mut text = format!(
            "what answers at {base} is no node of mainstay, or a proxy in front of one: status {status}"
        );
        if let Some(to) = self.location.as_ref().filter(|_| (300..400).contains(&status)) {
            text.push_str(&format!(", which leads to {to}; give the address of the node itself"));
        }
        Error::new(Code::Unreachable, crate::cli::output::plain_lines(&text))
    }

    /// Why it is no success.
    fn refusal(&self) -> Error {
        let field = |name: &str| self.body[name].as_str().unwrap_or_default().to_owned();
        if field("code").is_empty() {
            return self.stranger();
        }
        let code = Code::parse(&field("code")).unwrap_or(Code::Unreachable);
        let mut text = format!("{} ({})", field("detail"), self.status);
        for fault in self.body["errors"].as_array().into_iter().flatten() {
            text.push_str("\n  ");
            text.push_str(fault["reason"].as_str().unwrap_or_default());
        }
        Error::new(code, crate::cli::output::plain_lines(&text))
    }
}

/// A client with its own small runtime: commands are synchronous.
pub(crate) struct Client {
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
    base: String,
    token: Option<SecretString>,
    /// Longest wait for one answer.
    patience: Duration,
}

/// Largest file with a token.
const MAX_TOKEN: u64 = 64 * 1024;
/// Longest time for one answer.
const TIMEOUT: Duration = Duration::from_secs(100);

impl Client {
    /// A client for these arguments.
    ///
    /// # Errors
    /// When the address is none, or the token file cannot be read.
    pub(crate) fn new(args: &ServerArgs) -> Result<Self> {
        Self::of(&args.server, &args.access)
    }

    /// A client of the node at `server`, which is told the token.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub(crate) fn of(server: &str, args: &AccessArgs) -> Result<Self> {
        let internal = |e: &dyn std::error::Error| Error::new(Code::Internal, format!("no HTTP client: {e}"));
        if !is_address(server) {
            let why =
                format!("`{server}` is no address of a node; expected http://HOST:PORT or https://HOST:PORT");
            return Err(Error::new(Code::BadValue, why));
        }
        let token = match &args.token_file {
            Some(path) => {
                let why =
                    |e| Error::with(Code::ConfigUnreadable, format!("cannot read {}", path.display()), e);
                Some(files::text(path, MAX_TOKEN).map_err(why)?)
            }
            None => std::env::vars().find(|(k, _)| k == "MAINSTAY_TOKEN").map(|(_, v)| v),
        };
        // A redirect that was followed would make a GET of a POST, and what was to be done would not be.
        let mut http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        if let Some(path) = &args.ca {
            let place = || format!("cannot use {}", path.display());
            let pem = std::fs::read(path).map_err(|e| Error::with(Code::ConfigUnreadable, place(), e))?;
            let root = reqwest::Certificate::from_pem(&pem);
            let root = root.map_err(|e| Error::with(Code::ConfigUnreadable, place(), e))?;
            http = http.tls_certs_merge([root]);
        }
        if let Some(path) = &args.identity {
            let place = || format!("cannot use {}", path.display());
            let pem = std::fs::read(path).map_err(|e| Error::with(Code::ConfigUnreadable, place(), e))?;
            // The parser's own text is not repeated: it may quote the key.
            let identity = reqwest::Identity::from_pem(&pem).map_err(|_| {
                Error::new(Code::ConfigUnreadable, format!("{}: no certificate with its key", place()))
            })?;
            http = http.identity(identity);
        }
        Ok(Self {
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|e| internal(&e))?,
            http: http.build().map_err(|e| internal(&e))?,
            base: server.trim_end_matches('/').to_owned(),
            token: token.map(|t| SecretString::from(t.trim().to_owned())),
            patience: TIMEOUT,
        })
    }

    /// The same client for another address, whose program is not told the token.
    pub(crate) fn towards(self, base: String) -> Self {
        Self { base, token: None, ..self }
    }

    /// The same client, which waits no longer for an answer.
    pub(crate) fn within(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Lets some time pass.
    pub(crate) fn pause(&self, d: Duration) {
        let clock = mainstay_clock::SystemClock::new();
        self.runtime.block_on(async { mainstay_clock::Clock::sleep(&clock, d).await });
    }

    /// Sends one request; any status is an answer.
    ///
    /// # Errors
    /// When nobody answers.
    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Answer> {
        let method = http::Method::from_bytes(method.as_bytes())
            .map_err(|e| Error::with(Code::Internal, "not a method", e))?;
        let mut request = self.request(method, path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let failed = |e| self.failed(e);
        self.runtime.block_on(async {
            let response = request.send().await.map_err(failed)?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            Ok(Answer::of(&self.base, status, &headers, response.text().await.map_err(failed)?))
        })
    }

    /// The bytes at `path`, if there are no more than `most`.
    ///
    /// # Errors
    /// When nobody answers, as for [`call`](Self::call), and when there are more.
    pub(crate) fn fetch(&self, path: &str, most: usize) -> Result<Vec<u8>> {
        let request = self.request(http::Method::GET, path);
        let failed = |e| self.failed(e);
        let (status, headers, bytes) = self.runtime.block_on(async {
            let mut response = request.send().await.map_err(failed)?;
            let mut bytes = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(failed)? {
                if chunk.len() > most - bytes.len() {
                    let why = format!("{} answers with more than {most} bytes", self.base);
                    return Err(Error::new(Code::Unreachable, why));
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok((response.status().as_u16(), response.headers().clone(), bytes))
        })?;
        if (200..300).contains(&status) {
            return Ok(bytes);
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Err(Answer::of(&self.base, status, &headers, text).refusal())
    }

    fn request(&self, method: http::Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base)).timeout(self.patience);
        match &self.token {
            Some(token) => request.bearer_auth(token.expose_secret()),
            None => request,
        }
    }

    fn failed(&self, e: reqwest::Error) -> Error {
        Error::with(Code::Unreachable, format!("no answer from {}", self.base), e.without_url())
    }

    /// Sends one request and takes only success, which is always an object.
    ///
    /// # Errors
    /// When nobody answers, or no node does, or the node answers with a problem: its code is kept.
    pub(crate) fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Answer> {
        let answer = self.send(method, path, headers, body)?;
        match (200..300).contains(&answer.status) {
            true if answer.body.is_object() => Ok(answer),
            true => Err(answer.stranger()),
            false => Err(answer.refusal()),
        }
    }
}

/// Whether a client can ask there. `localhost:4600` is a URL too, of the scheme `localhost`.
fn is_address(server: &str) -> bool {
    reqwest::Url::parse(server).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

/// One segment of a path.
pub(crate) fn segment(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}
