//! Baselines of this host: what is in the store that the data plane uses, and work on it.
//!
//! In: images to add, manifests to verify or remove. Out: lists, and work whose progress can be watched.
//! Promises: one piece of work runs at a time and few wait, each on a thread that serves nobody else; what is
//! stopped or fails leaves the store as it was; ended work is remembered for a while, and no longer.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dwcp_baseline::image::{Format, Image};
use dwcp_baseline::{Kind, Limits, ManifestId, Store, StoreError, Summary, Tenant};
use serde::{Deserialize, Serialize};

/// Pieces of work that are remembered.
const WORK_MAX: usize = 32;
/// Pieces of work that may wait or run.
const UNDONE_MAX: usize = 4;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum BaselinesError {
    /// There is no store.
    #[error("this host keeps no baselines")]
    Off,
    /// A field of a request.
    #[error("{field}: {problem}")]
    BadRequest {
        /// Field meant.
        field: &'static str,
        /// What is wrong.
        problem: &'static str,
    },
    /// Too much at once.
    #[error("{UNDONE_MAX} pieces of work are waiting or at work already")]
    Busy,
    /// No such work.
    #[error("there is no work {0}, or it ended long ago")]
    UnknownWork(u64),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// `POST /v1/baselines`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddRequest {
    /// The image on this host, an absolute path.
    pub path: PathBuf,
    /// Whose it is; absent: the default tenant's.
    #[serde(default)]
    pub tenant: Option<String>,
    /// For people; absent: the file's name.
    #[serde(default)]
    pub name: Option<String>,
    /// Absent: by its first bytes.
    #[serde(default)]
    pub format: Option<ImageFormat>,
}

/// How an image is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// Byte for byte.
    Raw,
    /// QEMU's own.
    Qcow2,
}

/// One baseline.
#[derive(Clone, Debug, Serialize)]
pub struct BaselineView {
    id: String,
    tenant: String,
    kind: &'static str,
    name: String,
    blocks: u64,
    /// Of the blocks, each once.
    bytes: u64,
    logical_bytes: u64,
    created_s: u64,
    used_s: u64,
}

/// All of them.
#[derive(Clone, Debug, Serialize)]
pub struct ListView {
    baselines: Vec<BaselineView>,
    disk_bytes: u64,
    max_bytes: u64,
}

/// Where a piece of work stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkState {
    /// Others are before it.
    Waiting,
    /// At work.
    Running,
    /// It went well.
    Done,
    /// It did not.
    Failed,
}

/// A piece of work.
#[derive(Clone, Debug, Serialize)]
pub struct WorkView {
    /// Its number.
    pub work: u64,
    /// `add` or `verify`.
    what: &'static str,
    tenant: String,
    state: WorkState,
    bytes_done: u64,
    bytes_total: u64,
    /// What was added or verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<BaselineView>,
    /// Verified blocks that are not what they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    damaged: Option<u64>,
    /// Why it failed, with the cure.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// A word that programs may compare.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
}

struct Work {
    view: WorkView,
    stop: Arc<AtomicBool>,
}

struct Inner {
    store: Store,
    max_bytes: u64,
    work: Mutex<Vec<Work>>,
    /// Held by the piece that runs.
    turn: Mutex<()>,
}

/// See the module; a clone is the same.
#[derive(Clone, Default)]
pub struct Baselines(Option<Arc<Inner>>);

/// What a piece of work came to.
enum Outcome {
    Added(BaselineView),
    Verified(BaselineView, u64),
}

impl Baselines {
    /// Opens the store in `dir`, if there is to be one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(dir: Option<&std::path::Path>, max_bytes: u64) -> Result<Self, StoreError> {
        let Some(dir) = dir else {
            return Ok(Self(None));
        };
        let limits = Limits {
            bytes_max: max_bytes,
            // Migrations are the data plane's to keep and to give up.
            migrations_max: usize::MAX,
        };
        Ok(Self(Some(Arc::new(Inner {
            store: Store::open(dir, limits)?,
            max_bytes,
            work: Mutex::default(),
            turn: Mutex::default(),
        }))))
    }

    fn inner(&self) -> Result<&Arc<Inner>, BaselinesError> {
        self.0.as_ref().ok_or(BaselinesError::Off)
    }

    /// All baselines, or those of one tenant. Reads the disk.
    ///
    /// # Errors
    /// [`BaselinesError`].
    pub fn list(&self, tenant: Option<&str>) -> Result<ListView, BaselinesError> {
        let inner = self.inner()?;
        let tenants = match tenant {
            Some(name) => vec![tenant_of(Some(name))?],
            None => inner.store.tenants()?,
        };
        let mut baselines = Vec::new();
        for tenant in tenants {
            let list = inner.store.list(&tenant)?;
            baselines.extend(list.iter().map(|summary| view(&tenant, summary)));
        }
        Ok(ListView {
            baselines,
            disk_bytes: inner.store.disk_bytes()?,
            max_bytes: inner.max_bytes,
        })
    }

    /// Removes one. Writes to the disk.
    ///
    /// # Errors
    /// [`BaselinesError`].
    pub fn remove(&self, tenant: &str, id: &str) -> Result<(), BaselinesError> {
        let (tenant, id) = (tenant_of(Some(tenant))?, id_of(id)?);
        Ok(self.inner()?.store.remove(&tenant, id)?)
    }

    /// Begins to add an image.
    ///
    /// # Errors
    /// [`BaselinesError`].
    pub fn add(&self, request: AddRequest) -> Result<WorkView, BaselinesError> {
        let tenant = tenant_of(request.tenant.as_deref())?;
        if !request.path.is_absolute() {
            return Err(BaselinesError::BadRequest {
                field: "path",
                problem: "it is no absolute path: begin it with /",
            });
        }
        let name = request.name.unwrap_or_else(|| {
            let file = request.path.file_name().unwrap_or_default();
            file.to_string_lossy().into_owned()
        });
        let format = request.format.map(|format| match format {
            ImageFormat::Raw => Format::Raw,
            ImageFormat::Qcow2 => Format::Qcow2,
        });
        let path = request.path;
        self.begin("add", &tenant.clone(), move |inner, report| {
            let mut image = Image::open(&path, format, &inner.store)?;
            let total = image.bytes();
            let report = &mut |done| report(done, total);
            let named = (Kind::Image, name.as_str());
            let summary = inner.store.add(&tenant, named, &mut image, report)?;
            Ok(Outcome::Added(view(&tenant, &summary)))
        })
    }

    /// Begins to verify a baseline.
    ///
    /// # Errors
    /// [`BaselinesError`].
    pub fn verify(&self, tenant: &str, id: &str) -> Result<WorkView, BaselinesError> {
        let (tenant, id) = (tenant_of(Some(tenant))?, id_of(id)?);
        let known = self.inner()?.store.list(&tenant)?;
        let summary = known.into_iter().find(|summary| summary.id == id);
        let summary = summary.ok_or(StoreError::Unknown(id))?;
        self.begin("verify", &tenant.clone(), move |inner, report| {
            let view = view(&tenant, &summary);
            let report = &mut |done| report(done, view.bytes);
            let verified = inner.store.verify(&tenant, id, report)?;
            Ok(Outcome::Verified(view, verified.damaged))
        })
    }

    fn begin(
        &self,
        what: &'static str,
        tenant: &Tenant,
        work: impl FnOnce(&Inner, &mut dyn FnMut(u64, u64) -> bool) -> Result<Outcome, StoreError>
        + Send
        + 'static,
    ) -> Result<WorkView, BaselinesError> {
        let inner = Arc::clone(self.inner()?);
        let stop = Arc::new(AtomicBool::new(false));
        let view = inner.note(what, tenant, &stop)?;
        let number = view.work;
        // A thread of its own: it may take minutes, and the threads of the API serve others.
        let spawned = std::thread::Builder::new()
            .name(format!("baseline-{what}"))
            .spawn({
                let inner = Arc::clone(&inner);
                move || {
                    let _turn = inner.turn.lock().unwrap_or_else(PoisonError::into_inner);
                    inner.change(number, |view| view.state = WorkState::Running);
                    let mut report = |done, total| {
                        inner.change(number, |view| {
                            (view.bytes_done, view.bytes_total) = (done, total);
                        });
                        !stop.load(Ordering::Relaxed)
                    };
                    let outcome = if report(0, 0) {
                        work(&inner, &mut report)
                    } else {
                        Err(StoreError::Stopped)
                    };
                    inner.change(number, |view| view.end(outcome));
                }
            });
        if let Err(error) = spawned {
            inner.change(number, |view| {
                view.state = WorkState::Failed;
                view.error = Some(error.to_string());
            });
        }
        self.work(number)
    }

    /// One piece of work.
    ///
    /// # Errors
    /// [`BaselinesError::UnknownWork`].
    pub fn work(&self, number: u64) -> Result<WorkView, BaselinesError> {
        let work = self.inner()?.lock();
        let found = work.iter().find(|work| work.view.work == number);
        found
            .map(|work| work.view.clone())
            .ok_or(BaselinesError::UnknownWork(number))
    }

    /// Has a piece of work stop soon.
    ///
    /// # Errors
    /// [`BaselinesError::UnknownWork`].
    pub fn stop(&self, number: u64) -> Result<WorkView, BaselinesError> {
        let work = self.inner()?.lock();
        let found = work.iter().find(|work| work.view.work == number);
        let found = found.ok_or(BaselinesError::UnknownWork(number))?;
        found.stop.store(true, Ordering::Relaxed);
        Ok(found.view.clone())
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Work>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a new piece of work.
    fn note(
        &self,
        what: &'static str,
        tenant: &Tenant,
        stop: &Arc<AtomicBool>,
    ) -> Result<WorkView, BaselinesError> {
        let mut all = self.lock();
        let undone = |work: &&Work| work.view.is_undone();
        if all.iter().filter(undone).count() >= UNDONE_MAX {
            return Err(BaselinesError::Busy);
        }
        if all.len() == WORK_MAX
            && let Some(oldest) = all.iter().position(|work| !work.view.is_undone())
        {
            all.remove(oldest);
        }
        let view = WorkView {
            work: all.last().map_or(1, |last| last.view.work + 1),
            what,
            tenant: tenant.to_string(),
            state: WorkState::Waiting,
            bytes_done: 0,
            bytes_total: 0,
            baseline: None,
            damaged: None,
            error: None,
            code: None,
        };
        all.push(Work {
            view: view.clone(),
            stop: Arc::clone(stop),
        });
        Ok(view)
    }

    fn change(&self, number: u64, change: impl FnOnce(&mut WorkView)) {
        let mut all = self.lock();
        if let Some(work) = all.iter_mut().find(|work| work.view.work == number) {
            change(&mut work.view);
        }
    }
}

impl WorkView {
    const fn is_undone(&self) -> bool {
        matches!(self.state, WorkState::Waiting | WorkState::Running)
    }

    fn end(&mut self, outcome: Result<Outcome, StoreError>) {
        match outcome {
            Ok(outcome) => {
                self.state = WorkState::Done;
                self.bytes_done = self.bytes_total;
                let (baseline, damaged) = match outcome {
                    Outcome::Added(view) => (view, None),
                    Outcome::Verified(view, damaged) => (view, Some(damaged)),
                };
                (self.baseline, self.damaged) = (Some(baseline), damaged);
            }
            Err(error) => {
                self.state = WorkState::Failed;
                (self.error, self.code) = (Some(error.to_string()), Some(error.code()));
            }
        }
    }
}

fn view(tenant: &Tenant, summary: &Summary) -> BaselineView {
    BaselineView {
        id: summary.id.to_string(),
        tenant: tenant.to_string(),
        kind: summary.kind.as_str(),
        name: summary.name.clone(),
        blocks: summary.blocks,
        bytes: summary.blocks * dwcp_baseline::BLOCK_BYTES as u64,
        logical_bytes: summary.logical_bytes,
        created_s: summary.created_s,
        used_s: summary.used_s,
    }
}

fn tenant_of(name: Option<&str>) -> Result<Tenant, BaselinesError> {
    Tenant::new(name.unwrap_or(Tenant::DEFAULT)).ok_or(BaselinesError::BadRequest {
        field: "tenant",
        problem: "it must be 1 to 32 of a-z 0-9 - _ . and begin with a letter or a digit",
    })
}

fn id_of(id: &str) -> Result<ManifestId, BaselinesError> {
    ManifestId::parse(id).ok_or(BaselinesError::BadRequest {
        field: "id",
        problem: "it must be 64 hexadecimal digits",
    })
}
