//! CUDA's driver, asked through its own library: what can be known of GPUs before libtorch's CUDA part is loaded.

#![expect(
    unsafe_code,
    reason = "the dynamic loader and C have no safe interface"
)]

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::fmt;
use std::mem::ManuallyDrop;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY, RTLD_NOW, Symbol};

use super::Error;

/// A version of CUDA, as CUDA counts: 13010 is 13.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(c_int);

impl Version {
    pub fn major(self) -> c_int {
        self.0 / 1000
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.0 % 1000 / 10)
    }
}

/// A GPU as CUDA shows it to this process; its place in the list is its number.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Gpu {
    pub name: String,
    /// 32 digits in five groups, without what NVML writes before it: `GPU-`, or `MIG-` for a part of one.
    pub uuid: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
}

/// The functions of `libcuda.so.1` that are asked here, under the names and with the types of the CUDA driver API.
struct Functions {
    version: unsafe extern "C" fn(*mut c_int) -> c_int,
    init: unsafe extern "C" fn(c_uint) -> c_int,
    error_name: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
    count: unsafe extern "C" fn(*mut c_int) -> c_int,
    device: unsafe extern "C" fn(*mut c_int, c_int) -> c_int,
    name: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int,
    uuid: unsafe extern "C" fn(*mut [u8; 16], c_int) -> c_int,
    attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int,
}

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
const CAPABILITY: [c_int; 2] = [75, 76];

/// The driver's library, loaded for good.
pub struct Driver {
    functions: Functions,
    /// The newest CUDA that it runs.
    pub version: Version,
}

impl Driver {
    /// Loads the library and asks for its version, which needs no GPU.
    pub fn load() -> Result<Self, Error> {
        let missing = |error: libloading::Error| Error::NoDriver {
            reason: error.to_string(),
        };
        // SAFETY: the driver's library runs its own constructors, as it does in every CUDA program. It is never unloaded,
        // so that the functions stay valid. Their types above are those of the CUDA driver API.
        let functions = unsafe {
            let library = Library::open(Some("libcuda.so.1"), RTLD_LAZY).map_err(missing)?;
            let library = ManuallyDrop::new(library);
            Functions {
                version: function(&library, "cuDriverGetVersion").map_err(missing)?,
                init: function(&library, "cuInit").map_err(missing)?,
                error_name: function(&library, "cuGetErrorName").map_err(missing)?,
                count: function(&library, "cuDeviceGetCount").map_err(missing)?,
                device: function(&library, "cuDeviceGet").map_err(missing)?,
                name: function(&library, "cuDeviceGetName").map_err(missing)?,
                uuid: function(&library, "cuDeviceGetUuid_v2").map_err(missing)?,
                attribute: function(&library, "cuDeviceGetAttribute").map_err(missing)?,
            }
        };
        let mut driver = Self {
            functions,
            version: Version(0),
        };
        // SAFETY: it writes one number.
        let code = unsafe { (driver.functions.version)(&raw mut driver.version.0) };
        driver.check(code)?;
        Ok(driver)
    }

    /// The GPUs that CUDA shows to this process: `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER` are obeyed, for CUDA itself
    /// reads them. An empty list is possible, an error for lack of a GPU usual.
    pub fn gpus(&self) -> Result<Vec<Gpu>, Error> {
        let functions = &self.functions;
        let mut count = 0;
        // SAFETY: 0 is the only flag there is; the second call writes one number.
        unsafe {
            self.check((functions.init)(0))?;
            self.check((functions.count)(&raw mut count))?;
        }
        (0..count).map(|index| self.gpu(index)).collect()
    }

    fn gpu(&self, index: c_int) -> Result<Gpu, Error> {
        let functions = &self.functions;
        let (mut device, mut name, mut uuid) = (0, [0; 128], [0; 16]);
        let mut capability = [0; 2];
        // SAFETY: each call writes into what it gets, `name` no more bytes than it is told, a zero among them or after them
        // in the array's last place, which it does not reach.
        unsafe {
            self.check((functions.device)(&raw mut device, index))?;
            let room = name.len() as c_int - 1;
            self.check((functions.name)(name.as_mut_ptr().cast(), room, device))?;
            self.check((functions.uuid)(&raw mut uuid, device))?;
            for (value, attribute) in capability.iter_mut().zip(CAPABILITY) {
                self.check((functions.attribute)(value, attribute, device))?;
            }
        }
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
        Ok(Gpu {
            name: name.to_string_lossy().into_owned(),
            uuid: hyphenated(uuid),
            capability: (capability[0], capability[1]),
        })
    }

    /// `code` of a call as an error, unless it is 0.
    fn check(&self, code: c_int) -> Result<(), Error> {
        if code == 0 {
            return Ok(());
        }
        let mut name = std::ptr::null();
        // SAFETY: it writes a pointer to a string that lives as long as the library, or null, or nothing.
        let name = unsafe {
            (self.functions.error_name)(code, &raw mut name);
            name.as_ref().map(|name| CStr::from_ptr(name))
        };
        Err(Error::Driver {
            code,
            name: name.map_or("no name".into(), CStr::to_string_lossy).into(),
            driver: self.version,
        })
    }
}

/// A function of a library.
///
/// # Safety
/// `F` is the function's type, and the library stays loaded.
unsafe fn function<F: Copy>(library: &Library, name: &str) -> Result<F, libloading::Error> {
    // SAFETY: the caller's promise.
    unsafe {
        let symbol: Symbol<F> = library.get(name.as_bytes())?;
        Ok(*symbol)
    }
}

/// The CUDA that libtorch was built for, where it was built for one.
pub fn libtorch_cuda_version() -> Option<Version> {
    let mut version = 0;
    // SAFETY: libtorch's libraries, in this process since its start, bring CUDA's runtime with them; the function's type is
    // the CUDA runtime API's, it writes one number and needs no driver.
    let code = unsafe {
        type Get = unsafe extern "C" fn(*mut c_int) -> c_int;
        let get: Get = function(&Library::this(), "cudaRuntimeGetVersion").ok()?;
        get(&raw mut version)
    };
    (code == 0).then_some(Version(version))
}

/// Loads libtorch's CUDA part, whose constructors register it with libtorch.
pub fn load_libtorch_cuda() -> Result<(), Error> {
    // SAFETY: the library runs its own constructors, as it does in every program that is linked with it, and stays loaded.
    let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
    match library.map(ManuallyDrop::new) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::NoLibrary {
            reason: error.to_string(),
        }),
    }
}

/// A UUID as it is usually written.
fn hyphenated(uuid: [u8; 16]) -> String {
    let hex = format!("{:032x}", u128::from_be_bytes(uuid));
    [0..8, 8..12, 12..16, 16..20, 20..32]
        .map(|group| &hex[group])
        .join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_uuids_are_written_as_nvidia_does() {
        assert_eq!(Version(13010).to_string(), "13.1");
        assert_eq!(Version(12040).major(), 12);
        let uuid = std::array::from_fn(|index| index as u8 * 16 + 1);
        assert_eq!(hyphenated(uuid), "01112131-4151-6171-8191-a1b1c1d1e1f1");
    }

    #[test]
    fn libtorch_says_what_it_was_built_for() {
        assert!(libtorch_cuda_version().is_none_or(|version| version.major() >= 11));
    }
}
