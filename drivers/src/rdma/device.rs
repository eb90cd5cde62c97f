//! The RDMA devices of this host, opened once for the process.
//!
//! Comes in: nothing. Goes out: devices, each with one protection domain that all lanes on it share,
//! so that memory is registered once. Promises: a device stays open as long as anything on it lives.

use std::ffi::CStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::{
    ibv_alloc_pd, ibv_context, ibv_dealloc_pd, ibv_get_device_name, ibv_pd, rdma_free_devices,
    rdma_get_devices,
};

/// The answer of a verb that returns a pointer.
pub(super) fn non_null<T>(pointer: *mut T) -> io::Result<NonNull<T>> {
    NonNull::new(pointer).ok_or_else(io::Error::last_os_error)
}

/// The files that verbs and rdma_cm work through.
const FILES: &str = "/dev/infiniband";

/// Why rdma_cm shows no device: libraries skip what they cannot open without a word.
fn none_because() -> io::Error {
    let try_all = || -> io::Result<()> {
        let open = |file: &Path| OpenOptions::new().read(true).write(true).open(file);
        open(&Path::new(FILES).join("rdma_cm"))?;
        for file in fs::read_dir(FILES)? {
            let file = file?;
            if file.file_name().to_string_lossy().starts_with("uverbs") {
                open(&file.path())?;
            }
        }
        Ok(())
    };
    let refused = try_all().err();
    refused.unwrap_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
}

/// rdma_cm's list of open devices.
struct List(NonNull<*mut ibv_context>);

// SAFETY: needed because of the raw pointer. The list is never written after it was made, and verbs
// may be called from any thread.
unsafe impl Send for List {}
// SAFETY: as above.
unsafe impl Sync for List {}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: needed to give the list back; it came from `rdma_get_devices`, and every device of
        // it holds the `Arc` around this value.
        unsafe { rdma_free_devices(self.0.as_ptr()) };
    }
}

/// One open device.
pub(super) struct Device {
    context: NonNull<ibv_context>,
    pd: NonNull<ibv_pd>,
    name: String,
    _list: Arc<List>,
}

// SAFETY: needed because of the raw pointers. Verbs on a context and on a protection domain are
// thread-safe, and both live until the drop of this value.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    /// What verbs know it by.
    pub(super) fn context(&self) -> *mut ibv_context {
        self.context.as_ptr()
    }

    /// The domain of all lanes and memory on this device.
    pub(super) fn pd(&self) -> *mut ibv_pd {
        self.pd.as_ptr()
    }

    /// Such as `mlx5_0`.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: needed to give the domain back; queue pairs and regions in it hold an `Arc` of this
        // device, so there are none left.
        let refused = unsafe { ibv_dealloc_pd(self.pd.as_ptr()) };
        debug_assert_eq!(refused, 0, "the domain of {} is in use", self.name);
    }
}

/// All devices that there were when they were opened. A clone is the same.
#[derive(Clone)]
pub(super) struct Devices(Arc<[Arc<Device>]>);

impl Devices {
    /// Opens every device that rdma_cm knows.
    pub(super) fn open() -> io::Result<Self> {
        let mut count = 0;
        // SAFETY: needed to ask rdma_cm; it writes the count and returns a list of that many
        // contexts, or null.
        let list = unsafe { rdma_get_devices(&raw mut count) };
        let list = NonNull::new(list).ok_or_else(none_because)?;
        let contexts = Arc::new(List(list));
        let mut devices = Vec::new();
        for at in 0..usize::try_from(count).unwrap_or(0) {
            // SAFETY: needed to read the list, which has `count` entries.
            let context = non_null(unsafe { *list.as_ptr().add(at) })?;
            // SAFETY: needed to make the domain and to name the device; the context is open as long as
            // the list is, and its device has a name that ends with a zero.
            let (pd, name) = unsafe {
                let name = ibv_get_device_name((*context.as_ptr()).device);
                (ibv_alloc_pd(context.as_ptr()), CStr::from_ptr(name))
            };
            devices.push(Arc::new(Device {
                context,
                pd: non_null(pd)?,
                name: name.to_string_lossy().into_owned(),
                _list: Arc::clone(&contexts),
            }));
        }
        if devices.is_empty() {
            return Err(none_because());
        }
        Ok(Self(devices.into()))
    }

    /// The one that rdma_cm chose for a connection.
    pub(super) fn of(&self, context: *mut ibv_context) -> Option<&Arc<Device>> {
        self.0.iter().find(|device| device.context() == context)
    }

    /// Their names.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|device| device.name())
    }
}
