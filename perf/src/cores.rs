//! Which core a data plane works on, and what a core has done. In: the host's number. Out: a line of its
//! configuration; processor time.

/// Both data planes of a bench run on one machine: each gets a core of its own where there are two, as they
/// would have on two machines. Nothing where cores cannot be told.
pub(crate) fn own_core(host: usize) -> String {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let core = cores.get(host).or_else(|| cores.last());
    core.map(|core| format!("cores = [{}]\n", core.id))
        .unwrap_or_default()
}

/// Processor time of this thread, in seconds.
pub(crate) fn processor_s() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}
