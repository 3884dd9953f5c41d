//! Peak GPU memory of this process, watched through NVML by a thread of its own.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;

/// The highest reading so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peak {
    /// What NVML counts for this process; `None` where it does not see it, as inside most containers.
    pub process_bytes: Option<u64>,
    /// All memory in use on the device at that time, other processes' as well.
    pub device_bytes: u64,
    /// Time since the monitor was started.
    pub at: Duration,
    /// The stage that was running, as [`VramMonitor::set_stage`] named it.
    pub stage: Option<String>,
}

/// Watches GPU memory until it is dropped. Never fails: without NVML or a GPU there is no thread and no peak.
#[derive(Debug)]
pub struct VramMonitor {
    shared: Arc<Mutex<Shared>>,
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

#[derive(Debug, Default)]
struct Shared {
    stage: Option<String>,
    peak: Option<Peak>,
}

/// One look at the device in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Reading {
    process_bytes: Option<u64>,
    device_bytes: u64,
}

/// Where readings come from. `None`: this one failed, the next may not.
trait Source: Send + 'static {
    fn read(&mut self) -> Option<Reading>;
}

impl VramMonitor {
    /// Starts to look every `interval`.
    pub fn start(interval: Duration) -> Self {
        match NvmlSource::open() {
            Ok(source) => Self::watch(source, interval),
            Err(error) => {
                tracing::debug!("GPU memory is not watched: {error}");
                Self {
                    shared: Arc::default(),
                    thread: None,
                }
            }
        }
    }

    fn watch(mut source: impl Source, interval: Duration) -> Self {
        let shared = Arc::<Mutex<Shared>>::default();
        let (stop, stopped) = channel::<()>();
        let started = Instant::now();
        let mine = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            loop {
                if let Some(reading) = source.read() {
                    lock(&mine).see(reading, started.elapsed());
                }
                // Nothing is ever sent: the other end is dropped to stop.
                if stopped.recv_timeout(interval) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        });
        Self {
            shared,
            thread: Some((stop, thread)),
        }
    }

    /// Names what runs from now on, for [`Peak::stage`].
    pub fn set_stage(&self, stage: &str) {
        lock(&self.shared).stage = Some(stage.to_owned());
    }

    /// The highest reading so far; `None` without a GPU.
    pub fn peak(&self) -> Option<Peak> {
        lock(&self.shared).peak.clone()
    }
}

impl Drop for VramMonitor {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            // A panic of the thread was printed when it happened; there is nothing to add.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// The process's own bytes decide where they are known.
    fn see(&mut self, reading: Reading, at: Duration) {
        let highest = self.peak.as_ref().map(|peak| Reading {
            process_bytes: peak.process_bytes,
            device_bytes: peak.device_bytes,
        });
        if highest.is_none_or(|highest| reading > highest) {
            self.peak = Some(Peak {
                process_bytes: reading.process_bytes,
                device_bytes: reading.device_bytes,
                at,
                stage: self.stage.clone(),
            });
        }
    }
}

/// A panic of the other thread leaves the readings as good as they were.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All GPUs that NVML sees. Its numbering need not be CUDA's, so the GPU in use is found by what happens on it.
struct NvmlSource {
    nvml: Nvml,
    /// Bytes in use on each GPU at the start.
    before: Vec<u64>,
}

impl NvmlSource {
    fn open() -> Result<Self, NvmlError> {
        let nvml = Nvml::init()?;
        let before = (0..nvml.device_count()?)
            .map(|index| Ok(nvml.device_by_index(index)?.memory_info()?.used))
            .collect::<Result<_, NvmlError>>()?;
        Ok(Self { nvml, before })
    }

    fn device(&self, index: usize) -> Option<Reading> {
        let device = self.nvml.device_by_index(index as u32).ok()?;
        let processes = device.running_compute_processes().unwrap_or_default();
        let process_bytes = processes
            .iter()
            .filter(|process| process.pid == std::process::id())
            .find_map(|process| match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            });
        let device_bytes = device.memory_info().ok()?.used;
        Some(Reading {
            process_bytes,
            device_bytes,
        })
    }
}

impl Source for NvmlSource {
    /// The GPU that holds most of this process; where NVML does not see it, the one whose use has grown most.
    fn read(&mut self) -> Option<Reading> {
        let devices = self.before.iter().enumerate();
        devices
            .filter_map(|(index, before)| Some((self.device(index)?, before)))
            .max_by_key(|(now, before)| {
                (now.process_bytes, now.device_bytes.saturating_sub(**before))
            })
            .map(|(now, _)| now)
    }
}

/// The lowest compute capability (major, minor) of the GPUs that NVML sees; `None` without NVML.
pub(super) fn lowest_compute_capability() -> Option<(i32, i32)> {
    let nvml = Nvml::init().ok()?;
    (0..nvml.device_count().ok()?)
        .filter_map(|index| {
            let device = nvml.device_by_index(index).ok()?;
            let capability = device.cuda_compute_capability().ok()?;
            Some((capability.major, capability.minor))
        })
        .min()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// Gives the readings in turn, tells after each, and gives nothing after the last.
    struct Script {
        readings: std::vec::IntoIter<Option<Reading>>,
        read: Sender<()>,
    }

    impl Source for Script {
        fn read(&mut self) -> Option<Reading> {
            let reading = self.readings.next().flatten();
            let _ = self.read.send(());
            reading
        }
    }

    fn reading(process_bytes: Option<u64>, device_bytes: u64) -> Reading {
        Reading {
            process_bytes,
            device_bytes,
        }
    }

    /// The monitor after it has seen all of `readings`.
    fn watched(readings: Vec<Option<Reading>>) -> VramMonitor {
        let count = readings.len();
        let (read, seen) = channel();
        let script = Script {
            readings: readings.into_iter(),
            read,
        };
        let monitor = VramMonitor::watch(script, Duration::from_millis(1));
        // A reading is recorded after it was told, so wait for one more.
        (0..=count).for_each(|_| seen.recv().unwrap());
        monitor
    }

    #[test]
    fn the_highest_reading_is_kept() {
        let check = |readings: Vec<Option<Reading>>, expected| {
            let peak = watched(readings).peak();
            let peak = peak.map(|peak| (peak.process_bytes, peak.device_bytes));
            assert_eq!(peak, expected);
        };
        check(vec![None], None);
        let some = |process_bytes, device_bytes| Some(reading(process_bytes, device_bytes));
        check(
            vec![some(None, 5), None, some(None, 9), some(None, 7)],
            Some((None, 9)),
        );
        // The own process counts, not the device.
        check(
            vec![some(None, 90), some(Some(3), 50), some(Some(2), 80)],
            Some((Some(3), 50)),
        );
    }

    #[test]
    fn the_peak_belongs_to_the_stage_that_ran() {
        struct Steps(std::sync::mpsc::Receiver<u64>);
        impl Source for Steps {
            fn read(&mut self) -> Option<Reading> {
                Some(reading(None, self.0.recv().ok()?))
            }
        }
        let (bytes, steps) = channel();
        let monitor = VramMonitor::watch(Steps(steps), Duration::ZERO);
        let wait = |device_bytes| {
            while monitor
                .peak()
                .is_none_or(|peak| peak.device_bytes < device_bytes)
            {
                std::thread::yield_now();
            }
            monitor.peak().unwrap()
        };
        bytes.send(1).unwrap();
        assert_eq!(wait(1).stage, None);
        monitor.set_stage("attention");
        bytes.send(7).unwrap();
        assert_eq!(wait(7).stage.as_deref(), Some("attention"));
        monitor.set_stage("mlp");
        bytes.send(3).unwrap();
        bytes.send(8).unwrap();
        let peak = wait(8);
        assert_eq!(peak.stage.as_deref(), Some("mlp"));
        assert!(peak.at > Duration::ZERO);
        drop(bytes);
    }

    #[test]
    fn dropping_the_monitor_stops_its_thread_at_once() {
        struct Endless(Arc<()>);
        impl Source for Endless {
            fn read(&mut self) -> Option<Reading> {
                Some(reading(None, Arc::strong_count(&self.0) as u64))
            }
        }
        let alive = Arc::new(());
        let monitor = VramMonitor::watch(Endless(Arc::clone(&alive)), Duration::from_hours(1));
        drop(monitor);
        assert_eq!(Arc::strong_count(&alive), 1);
    }

    #[test]
    fn without_a_gpu_there_is_no_peak_and_no_error() {
        let monitor = VramMonitor::start(Duration::from_millis(10));
        monitor.set_stage("any");
        if Nvml::init().is_err() {
            assert_eq!(monitor.peak(), None);
        }
    }
}
