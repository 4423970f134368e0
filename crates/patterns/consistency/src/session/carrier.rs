//! Tokens in HTTP headers and cookies, as a layer of `tower` (feature `tower`; only its two trait crates and `http`).
//!
//! The request's tokens are joined; handlers find a [`Carried`] among the request's extensions, begin their sessions
//! from [`Carried::session`] and give back what they know with [`Carried::keep`]. The response, also an error, carries
//! the join of the request's token and all that was kept.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use http::header::{COOKIE, HeaderName, HeaderValue, SET_COOKIE};
use http::{HeaderMap, Request, Response};
use mainstay_store::ReplicatedStore;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{Router, Session, SessionToken, TokenKeys};
use crate::error::Result;

/// Where tokens travel.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Where {
    Cookie(&'static str),
    Header(HeaderName),
}

/// Opens tokens of requests and seals those of responses. Clones share the router.
pub struct SessionLayer<C> {
    router: Router<C>,
    keys: Arc<TokenKeys>,
    place: Where,
}

impl<C> Clone for SessionLayer<C> {
    fn clone(&self) -> Self {
        Self { router: self.router.clone(), keys: Arc::clone(&self.keys), place: self.place.clone() }
    }
}

impl<C> fmt::Debug for SessionLayer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionLayer").field("place", &self.place).finish_non_exhaustive()
    }
}

impl<C: ReplicatedStore + 'static> SessionLayer<C> {
    /// Tokens in the header `mainstay-session`.
    #[must_use]
    pub fn header(router: Router<C>, keys: TokenKeys) -> Self {
        let place = Where::Header(HeaderName::from_static(super::headers::NAME));
        Self { router, keys: Arc::new(keys), place }
    }

    /// Tokens in the cookie `mainstay_session`: `HttpOnly`, `Secure`, `SameSite=Lax`.
    #[must_use]
    pub fn cookie(router: Router<C>, keys: TokenKeys) -> Self {
        Self { router, keys: Arc::new(keys), place: Where::Cookie("mainstay_session") }
    }

    /// Every token of a request: a proxy, or two cookies of one name, may bring several.
    fn find(&self, headers: &HeaderMap) -> Vec<String> {
        // Bytes that are no text are no token either: said as an empty one, which does not open.
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).unwrap_or_default().to_owned();
        match &self.place {
            Where::Header(name) => headers.get_all(name).iter().map(|v| text(v.as_bytes())).collect(),
            Where::Cookie(name) => {
                let pairs = headers.get_all(COOKIE).iter().flat_map(|v| v.as_bytes().split(|b| *b == b';'));
                let ours = pairs.filter_map(|pair| {
                    pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=").map(text)
                });
                ours.collect()
            }
        }
    }

    /// What the response carries if no handler keeps a session: the join of all tokens, and a debt for each that is none.
    fn open(&self, texts: &[String]) -> Option<SessionToken> {
        let now = self.router.clock().wall();
        let mut all = SessionToken::new();
        for text in texts {
            let joined = self.keys.open(text, now).is_ok_and(|token| all.merge(&token).is_ok());
            all.owed |= !joined;
        }
        (!texts.is_empty()).then_some(all)
    }

    fn put(&self, token: &SessionToken, headers: &mut HeaderMap) {
        let text = self.keys.seal(token, self.router.clock().wall());
        let (name, value) = match &self.place {
            Where::Header(name) => (name.clone(), text),
            Where::Cookie(name) => {
                (SET_COOKIE, format!("{name}={text}; Path=/; HttpOnly; Secure; SameSite=Lax"))
            }
        };
        if let Ok(value) = HeaderValue::try_from(value) {
            if name == SET_COOKIE {
                headers.append(name, value)
            } else {
                headers.insert(name, value).is_some()
            };
        }
    }
}

/// What the response is going to carry.
#[derive(Clone, Debug, Default)]
struct Known {
    /// With the request's own token, which goes on even if no handler keeps a session.
    all: Option<SessionToken>,
    /// Without it.
    kept: Option<SessionToken>,
}

impl Known {
    fn keep(&mut self, token: &SessionToken) -> Result<()> {
        let (mut all, mut kept) =
            (self.all.clone().unwrap_or_default(), self.kept.clone().unwrap_or_default());
        all.merge(token)?;
        kept.merge(token)?;
        (self.all, self.kept) = (Some(all), Some(kept));
        Ok(())
    }

    /// The request's token was acknowledged as lost; what was kept beside it was not.
    fn begin_again(&mut self, token: &SessionToken) -> Result<()> {
        let mut kept = self.kept.clone().unwrap_or_default();
        kept.merge(token)?;
        (self.all, self.kept) = (Some(kept.clone()), Some(kept));
        Ok(())
    }
}

/// The session of one request, among its extensions. Clones share it.
pub struct Carried<C> {
    router: Router<C>,
    keys: Arc<TokenKeys>,
    texts: Arc<[String]>,
    known: Arc<Mutex<Known>>,
}

impl<C> Clone for Carried<C> {
    fn clone(&self) -> Self {
        let (router, keys) = (self.router.clone(), Arc::clone(&self.keys));
        Self { router, keys, texts: Arc::clone(&self.texts), known: Arc::clone(&self.known) }
    }
}

impl<C> fmt::Debug for Carried<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carried").field("known", &self.known).finish_non_exhaustive()
    }
}

impl<C: ReplicatedStore + 'static> Carried<C> {
    /// A session that goes on from the request's tokens; with one that does not open it reads from the primary.
    #[must_use]
    pub fn session(&self) -> Session<C> {
        let all = self.texts.iter();
        all.fold(self.router.session(), |session, text| session.resume_sealed(text, &self.keys))
    }

    /// Joins what a session knows into the response. A session that is not kept is forgotten.
    ///
    /// # Errors
    /// As for [`Session::token`].
    ///
    /// # Cancel safety
    /// Dropping the future keeps nothing.
    pub async fn keep(&self, session: &mut Session<C>) -> Result<()> {
        let token = session.token().await?;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).keep(&token)
    }

    /// Lets the response carry what this session knows, and nothing of what came with the request: after
    /// [`Session::accept_loss`], or the next request would be told of the same loss again. What other parts of the same
    /// request have kept stays.
    ///
    /// # Errors
    /// As for [`Session::token`]; the response then carries what it would have carried before.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn begin_again(&self, session: &mut Session<C>) -> Result<()> {
        let token = session.token().await?;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).begin_again(&token)
    }
}

/// A service whose requests carry sessions.
#[derive(Debug)]
pub struct SessionService<S, C> {
    inner: S,
    layer: SessionLayer<C>,
}

impl<S: Clone, C> Clone for SessionService<S, C> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<S, C> Layer<S> for SessionLayer<C> {
    type Service = SessionService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        SessionService { inner, layer: self.clone() }
    }
}

impl<S, C, A, B> Service<Request<A>> for SessionService<S, C>
where
    S: Service<Request<A>, Response = Response<B>>,
    C: ReplicatedStore + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = SessionFuture<S::Future, C>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let texts: Arc<[String]> = self.layer.find(request.headers()).into();
        let all = self.layer.open(&texts);
        let known = Arc::new(Mutex::new(Known { all, kept: None }));
        let (router, keys) = (self.layer.router.clone(), Arc::clone(&self.layer.keys));
        request.extensions_mut().insert(Carried { router, keys, texts, known: Arc::clone(&known) });
        SessionFuture { inner: self.inner.call(request), layer: self.layer.clone(), known }
    }
}

pin_project! {
    /// The response of a [`SessionService`].
    pub struct SessionFuture<F, C> {
        #[pin]
        inner: F,
        layer: SessionLayer<C>,
        known: Arc<Mutex<Known>>,
    }
}

impl<F, C> fmt::Debug for SessionFuture<F, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionFuture").finish_non_exhaustive()
    }
}

impl<F, C, B, E> Future for SessionFuture<F, C>
where
    F: Future<Output = std::result::Result<Response<B>, E>>,
    C: ReplicatedStore + 'static,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut out = ready!(this.inner.poll(cx));
        let known = std::mem::take(&mut *this.known.lock().unwrap_or_else(PoisonError::into_inner));
        if let (Ok(response), Some(token)) = (&mut out, known.all) {
            this.layer.put(&token, response.headers_mut());
        }
        Poll::Ready(out)
    }
}
