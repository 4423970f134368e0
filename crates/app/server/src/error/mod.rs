//! The error of the binary: a code with a page, what happened, and the chain below it.

mod codes;

use std::fmt;

pub(crate) use codes::Code;

/// What went wrong, with a code that has a page.
pub(crate) struct Error {
    code: Code,
    context: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Results of this crate.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error without a cause below it.
    pub(crate) fn new(code: Code, context: impl Into<String>) -> Self {
        Self { code, context: context.into(), source: None }
    }

    /// An error with its cause.
    pub(crate) fn with(
        code: Code,
        context: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { code, context: context.into(), source: Some(source.into()) }
    }

    /// The code.
    pub(crate) fn code(&self) -> Code {
        self.code
    }

    /// Tells a person on stderr what happened and where to read on.
    pub(crate) fn tell(&self) {
        let name = self.code.name();
        eprintln!("mainstay: {name}: {}\nmainstay: help: mainstay explain {name}", self.chain());
    }

    /// The whole chain in one line, for terminals and logs.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.context.clone();
        let mut next = self.source.as_deref().map(|e| e as &dyn std::error::Error);
        while let Some(error) = next {
            let line = error.to_string();
            // Some libraries print their source themselves; saying it twice helps nobody.
            if !text.contains(&line) {
                text.push_str(": ");
                text.push_str(&line);
            }
            next = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.context)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code.name(), self.chain())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn std::error::Error + 'static))
    }
}
