//! Ctrl-C and SIGTERM: the run ends in order, so that the pods go with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Context, Error};

/// Whether somebody has asked this process to end.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on. A handler, not a blocked mask: children would inherit the mask, and
    /// the proxies would never see their signals.
    pub(crate) fn listen() -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("a runtime for signals")?;
        let flag = Arc::new(AtomicBool::new(false));
        let (mut int, mut term) = {
            let _guard = runtime.enter();
            let handler = |kind| signal(kind).context("a signal handler");
            (handler(SignalKind::interrupt())?, handler(SignalKind::terminate())?)
        };
        let seen = Arc::clone(&flag);
        std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
                seen.store(true, Ordering::Relaxed);
                eprintln!("interrupted: taking the pods down");
            });
        });
        Ok(Self(flag))
    }

    /// An error once somebody has asked.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Whether somebody has asked.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
