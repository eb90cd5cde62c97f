//! One node's control plane, put together.
//!
//! In: the settings and a listening socket. Out: a running API with its background work. Promise: it
//! ends when told to, within the grace of [`crate::api::serve`], and what it started goes on: migrations
//! belong to the data plane and to the rows in the store.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

use dwcp_nic_config::journal::JournalError;
use dwcp_service::notify::Notifier;

use crate::access::audit::Audit;
use crate::access::idempotency::Keys;
use crate::access::tokens::Tokens;
use crate::api::ui::Ui;
use crate::api::{App, Parts, serve};
use crate::baselines::Baselines;
use crate::cluster::{Cluster, ClusterError};
use crate::config::Config;
use crate::flags::Flags;
use crate::host::Host;
use crate::jobs::{JobError, Jobs, JobsConfig, PeerToken};
use crate::life;
use crate::link_limit::LinkLimit;
use crate::mode::{self, Modes};
use crate::nics::Nics;
use crate::rollout::{Recorder, Rollouts};
use crate::store::{Store, StoreError};
use crate::telemetry::tally::Tally;
use crate::telemetry::trace::Traces;
use crate::telemetry::trace::context::Sampling;
use crate::telemetry::trace::export::ExportError;
use crate::telemetry::trace::source::Leaving;
use crate::tls::{self, TlsError};
use crate::token::{Token, TokenError};

/// Why a control plane cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A token file.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Certificates of the API.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The migrations that were running.
    #[error("migrations cannot be taken up again: {0}; {cure}", cure = .0.cure())]
    Jobs(#[from] JobError),
    /// The journals of NICs.
    #[error(transparent)]
    Nics(#[from] JournalError),
    /// The store of baselines.
    #[error("the baselines cannot be opened: {0}")]
    Baselines(#[from] dwcp_baseline::StoreError),
    /// The way to the collector.
    #[error(transparent)]
    Traces(#[from] ExportError),
    /// The cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The folder of the state.
    #[error("cannot create {path}: {reason}; create it, or choose another state_dir")]
    StateDir {
        /// Folder meant.
        path: std::path::PathBuf,
        /// What the system said.
        reason: String,
    },
}

/// Runs a control plane until `stop` becomes true.
///
/// # Errors
/// [`NodeError`] if it cannot begin.
pub async fn run(
    config: &Config,
    listener: TcpListener,
    stop: watch::Receiver<bool>,
) -> Result<(), NodeError> {
    let token = Token::read(&config.token_file)?;
    let tls = config.tls()?;
    let peer_token = Token::read(&config.peer_token_file)?;
    std::fs::create_dir_all(&config.state_dir).map_err(|error| NodeError::StateDir {
        path: config.state_dir.clone(),
        reason: error.to_string(),
    })?;
    let store = Store::open(&config.state_dir.join("controlplane.redb"))?;
    let (host, attaching) = Host::spawn(config.attach.clone());
    let flags = Flags::open(store.clone(), config.node.clone(), Box::new(host.clone()))?;
    let (cluster, agreeing) =
        Cluster::open(config, flags.clone(), store.clone(), stop.clone()).await?;
    let (traces, sampling) = match &config.trace_endpoint {
        Some(endpoint) => {
            let tls = tls::client(config.tls_ca.as_deref())?;
            let traces = Traces::to(endpoint, config.node.as_str(), tls)?;
            (traces, Sampling::new(config.trace_share))
        }
        None => (Traces::default(), Sampling::default()),
    };
    let jobs_config = JobsConfig {
        socket_dir: config.socket_dir.clone(),
        qmp_allowed_dirs: config.qmp_allowed_dirs.clone(),
        peer_tls: tls::client(config.tls_ca.as_deref())?,
        peer_token: Some(PeerToken(peer_token.reveal().to_owned())),
        sampling,
    };
    let jobs = Jobs::new(host.clone(), store.clone(), jobs_config)?;
    let nics = Nics::open(
        &config.sysfs,
        &config.procfs,
        &config.state_dir.join("nics"),
        jobs.clone(),
    )?;
    let modes = Modes::open(store.clone())?;
    let link = LinkLimit::new(store.clone(), host.clone());
    let recorder = Recorder::open(store.clone(), &config.procfs)?;
    count(&cluster, recorder.clone(), flags.clone(), host.clone());
    let rollouts = Rollouts::new(
        cluster.log(),
        Arc::new(cluster.clone()),
        Arc::new(life::unix_ms),
        config.node.as_str(),
    );
    let access = store.clone();
    let app = App::new(Parts {
        host: host.clone(),
        jobs: jobs.clone(),
        flags: flags.clone(),
        cluster: cluster.clone(),
        rollouts: rollouts.clone(),
        modes: modes.clone(),
        link: link.clone(),
        nics,
        baselines: Baselines::open(config.baseline_dir.as_deref(), config.baseline_max_bytes)?,
        store,
        tokens: Tokens::open(access.clone(), token)?,
        audit: Audit::open(access.clone())?,
        keys: Keys::open(access)?,
        requests_per_s: config.requests_per_s,
        metrics_open: config.metrics_open,
        traces: traces.clone(),
        stop: stop.clone(),
    });
    let tally = app.tally.clone();
    let ui = app.ui.clone();
    let manager = Notifier::from_env();
    if let Ok(address) = listener.local_addr() {
        manager.ready(&format!("the API is open on {address}"));
    }
    let background = [
        attaching,
        tokio::spawn(life::give_signs(manager)),
        tokio::spawn(apply_at_attach(host.clone(), flags, link)),
        tokio::spawn(mode::run::run(host.clone(), modes)),
        tokio::spawn(tally_failures(
            host.clone(),
            tally.clone(),
            recorder.clone(),
        )),
        tokio::spawn(draw_migrations(jobs.clone(), ui)),
        tokio::spawn(trace_migrations(
            jobs.clone(),
            Leaving::new(&traces, sampling),
        )),
        tokio::spawn(tally_migrations(jobs, tally, recorder, host)),
        tokio::spawn(rollouts.run(stop.clone())),
    ];
    tracing::info!(node = config.node.as_str(), address = ?listener.local_addr(), "the API is open");
    serve::serve(listener, tls, app.router(), stop).await;
    cluster.stop().await;
    for task in background.into_iter().chain(agreeing) {
        task.abort();
        // Until it is gone it holds the store.
        let _ = task.await;
    }
    // The spans that are left go out through this runtime.
    let _ = tokio::task::spawn_blocking(move || traces.stop()).await;
    Ok(())
}

/// Sets the switch words of every data plane that attaches.
async fn apply_at_attach(host: Host, flags: Flags, link: LinkLimit) {
    let mut attaches = host.on_attach();
    loop {
        attaches.borrow_and_update();
        let (flags, link) = (flags.clone(), link.clone());
        let apply = move || flags.apply_all().and_then(|()| link.apply());
        let applied = tokio::task::spawn_blocking(apply).await;
        // Not attached, or gone again: the next attach comes here too.
        tracing::debug!(?applied, "switch words");
        if attaches.changed().await.is_err() {
            return;
        }
    }
}

/// What this node answers when it is asked what it did.
fn count(cluster: &Cluster, recorder: Recorder, flags: Flags, host: Host) {
    cluster.count_with(move || {
        serde_json::to_value(recorder.figures(&flags, &host)).unwrap_or_default()
    });
}

/// Looks at the session table at each event, so that a failure is counted before it is forgotten.
async fn tally_failures(host: Host, tally: Tally, recorder: Recorder) {
    let mut events = host.events();
    while next(&mut events).await.is_some() {
        if let Ok(sessions) = host.sessions() {
            tally.observe_sessions(&sessions);
            let recorder = recorder.clone();
            keep(move || recorder.observe_sessions(&sessions)).await;
        }
    }
}

async fn tally_migrations(jobs: Jobs, tally: Tally, recorder: Recorder, host: Host) {
    let mut views = jobs.subscribe();
    while let Some(view) = next(&mut views).await {
        // If some were missed, the list has them all.
        let views = view.map_or_else(|| jobs.list(), |view| vec![view]);
        views.iter().for_each(|view| tally.observe_migration(view));
        let (recorder, host) = (recorder.clone(), host.clone());
        keep(move || {
            let mut all = views.iter();
            all.try_for_each(|view| recorder.observe_migration(view, &host))
        })
        .await;
    }
}

/// Writes samples, away from the tasks that serve.
async fn keep(write: impl FnOnce() -> Result<(), StoreError> + Send + 'static) {
    if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
        tracing::warn!(%error, "a sample of ended work is not kept yet");
    }
}

async fn trace_migrations(jobs: Jobs, mut leaving: Leaving) {
    let mut views = jobs.subscribe();
    while let Some(view) = next(&mut views).await {
        match view {
            Some(view) => leaving.take(&view),
            None => jobs.list().iter().for_each(|view| leaving.take(view)),
        }
    }
}

/// Keeps how fast migrations went, for the page.
async fn draw_migrations(jobs: Jobs, ui: Arc<Ui>) {
    let mut views = jobs.subscribe();
    while let Some(view) = next(&mut views).await {
        view.iter().for_each(|view| ui.history.take(view));
    }
}

/// The next message; `Some(None)` if some were missed; `None` at the end.
async fn next<T: Clone>(receiver: &mut Receiver<T>) -> Option<Option<T>> {
    match receiver.recv().await {
        Ok(message) => Some(Some(message)),
        Err(RecvError::Lagged(_)) => Some(None),
        Err(RecvError::Closed) => None,
    }
}
