//! What is asked of a right is asked of the guard behind it.

/// The calls of a [`Guard`](crate::Guard) that do not end it, on a type that has one as `guard`.
macro_rules! as_its_guard {
    ($holder:ty) => {
        impl $holder {
            /// The fencing token: larger than every earlier one of the name.
            #[must_use]
            pub fn token(&self) -> ::mainstay_store::FencingToken {
                self.guard.token()
            }

            /// When the right would end if nothing were renewed from now on.
            #[must_use]
            pub fn deadline(&self) -> ::mainstay_clock::Deadline {
                self.guard.deadline()
            }

            /// Whether the right is still there, without asking the store.
            ///
            /// # Errors
            /// `Lost` with the reason.
            pub fn check(&self) -> Result<(), $crate::Error> {
                self.guard.check()
            }

            /// Resolves when the right is gone; see [`Guard::lost`](crate::Guard::lost).
            ///
            /// # Cancel safety
            /// Changes nothing.
            pub async fn lost(&self) -> $crate::LossReason {
                self.guard.lost().await
            }

            /// Resolves when the right was renewed beyond `known`; see [`Guard::renewed`](crate::Guard::renewed).
            ///
            /// # Cancel safety
            /// Changes nothing.
            pub async fn renewed(&self, known: ::mainstay_clock::Deadline) -> ::mainstay_clock::Deadline {
                self.guard.renewed(known).await
            }

            /// Another hold on the same right; see [`Guard::share`](crate::Guard::share).
            pub fn share(&self) -> $crate::SharedGuard {
                self.guard.share()
            }

            /// Runs `work` on a thread of its own, and waits for its end; see
            /// [`Guard::run_blocking`](crate::Guard::run_blocking).
            ///
            /// # Errors
            /// `Lost` when the right was gone by the time the work was done, `NoThread` when nothing ran.
            ///
            /// # Cancel safety
            /// Dropping the future stops nothing: the work goes on, and keeps the right until its end.
            pub async fn run_blocking<T>(
                &self,
                work: impl FnOnce($crate::SharedGuard) -> T + Send + 'static,
            ) -> Result<T, $crate::Error>
            where
                T: Send + 'static,
            {
                self.guard.run_blocking(work).await
            }

            /// Runs `work` for as long as the right is there; see [`Guard::run`](crate::Guard::run).
            ///
            /// # Errors
            /// `Lost` when the right ended before the work.
            ///
            /// # Cancel safety
            /// Dropping the future drops the work; the right stays.
            pub async fn run<T, F>(&self, work: impl FnOnce($crate::Fence) -> F) -> Result<T, $crate::Error>
            where
                F: Future<Output = T>,
            {
                self.guard.run(work).await
            }
        }
    };
}

pub(crate) use as_its_guard;
