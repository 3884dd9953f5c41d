//! Memory while the program runs, watched by a thread of its own: this process's on the host, and the GPU's where one
//! computes.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::memory;
use super::nvml::{Usage, WatchedGpu};

/// Everything that was read.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Readings {
    /// Milliseconds between two of them.
    pub interval_ms: u64,
    /// Resident memory of this process. The kernel keeps its peak itself, so that none is missed between two readings.
    pub ram: Series,
    /// `None` where the CPU computes, or NVML does not show the GPU.
    pub vram: Option<Vram>,
    /// Why there is less to tell than there should be.
    pub note: Option<String>,
}

/// Memory of the GPU that computes.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Vram {
    /// The GPU's name.
    pub gpu: String,
    pub total_bytes: u64,
    /// By this process; never seen where NVML does not show it, as inside many containers.
    pub process: Series,
    /// By all processes.
    pub device: Series,
}

/// One quantity over time.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Series {
    /// How often it was read.
    pub samples: u64,
    /// How often it could not be read.
    pub failed: u64,
    /// The last reading before now.
    pub current_bytes: Option<u64>,
    pub peak: Option<Peak>,
}

/// The first of a series' highest readings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Peak {
    pub bytes: u64,
    /// Since the start of the program.
    pub seconds: f64,
    /// What the program did then, as it told [`Monitor::enter`].
    pub stage: String,
}

/// Watches memory until it is finished or dropped. Never fails: what cannot be read is counted and said.
pub struct Monitor {
    shared: Arc<Mutex<Shared>>,
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

/// The readings so far, for those who show them meanwhile.
#[derive(Clone)]
pub struct Live(Arc<Mutex<Shared>>);

#[derive(Default)]
struct Shared {
    stage: String,
    readings: Readings,
}

/// Where a thread reads memory. An error is counted, and the next reading tried all the same.
trait Source: Send + 'static {
    fn ram(&mut self) -> Option<memory::Resident>;
    /// `None`: there is nothing to read.
    fn vram(&mut self) -> Option<Result<Usage, String>>;
}

impl Monitor {
    /// Looks every `interval`, and counts time from `start`. On a GPU `uuid` is CUDA's for it.
    pub fn start(uuid: Option<&str>, interval: Duration, start: Instant) -> Self {
        let mut shared = Shared::default();
        let opened = uuid.map(WatchedGpu::open).transpose();
        let gpu = opened.unwrap_or_else(|error| {
            shared.readings.note = Some(format!("the GPU's memory was not measured: {error}"));
            None
        });
        shared.readings.vram = gpu.as_ref().map(|gpu| Vram {
            gpu: gpu.name.clone(),
            total_bytes: gpu.total_bytes,
            ..Vram::default()
        });
        Self::watch(Machine(gpu), shared, interval, start)
    }

    fn watch(
        mut source: impl Source,
        mut shared: Shared,
        interval: Duration,
        start: Instant,
    ) -> Self {
        shared.readings.interval_ms = interval.as_millis() as u64;
        let shared = Arc::new(Mutex::new(shared));
        let (stop, stopped) = channel::<()>();
        let mine = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            loop {
                let (ram, vram) = (source.ram(), source.vram());
                lock(&mine).see(ram, vram, start.elapsed());
                // Nothing is ever sent: the other end is dropped to stop.
                if stopped.recv_timeout(interval) == Err(RecvTimeoutError::Disconnected) {
                    let (ram, vram) = (source.ram(), source.vram());
                    lock(&mine).see(ram, vram, start.elapsed());
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
    pub fn enter(&self, stage: impl Into<String>) {
        lock(&self.shared).stage = stage.into();
    }

    /// A view of the readings that outlives the monitor.
    pub fn live(&self) -> Live {
        Live(Arc::clone(&self.shared))
    }

    /// Looks a last time, stops, and gives all readings.
    pub fn finish(mut self) -> Readings {
        self.stop();
        lock(&self.shared).readings.clone()
    }

    fn stop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            // A panic of the thread was printed when it happened; there is nothing to add.
            let _ = thread.join();
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Live {
    /// Those so far.
    pub fn readings(&self) -> Readings {
        lock(&self.0).readings.clone()
    }
}

impl Shared {
    fn see(
        &mut self,
        ram: Option<memory::Resident>,
        vram: Option<Result<Usage, String>>,
        at: Duration,
    ) {
        let Self { stage, readings } = self;
        let ram = ram.map(|ram| (ram.current_bytes, ram.peak_bytes));
        readings.ram.add(ram, at, stage);
        let (Some(seen), Some(usage)) = (&mut readings.vram, vram) else {
            return;
        };
        match usage {
            Ok(usage) => {
                let device = usage.device_bytes;
                seen.device.add(Some((device, device)), at, stage);
                if let Some(own) = usage.process_bytes {
                    seen.process.add(Some((own, own)), at, stage);
                }
            }
            Err(error) => {
                seen.device.add(None, at, stage);
                let (failed, samples) =
                    (seen.device.failed, seen.device.samples + seen.device.failed);
                readings.note = Some(format!(
                    "{failed} of {samples} readings of the GPU's memory failed, the last with: {error}; the peak is that of \
                     the others"
                ));
            }
        }
    }
}

impl Series {
    /// Takes in a reading: what is in use now, and the most that was since the last one.
    fn add(&mut self, reading: Option<(u64, u64)>, at: Duration, stage: &str) {
        let Some((current, highest)) = reading else {
            self.failed += 1;
            return;
        };
        self.samples += 1;
        self.current_bytes = Some(current);
        if self.peak.as_ref().is_none_or(|peak| highest > peak.bytes) {
            self.peak = Some(Peak {
                bytes: highest,
                seconds: at.as_secs_f64(),
                stage: stage.to_owned(),
            });
        }
    }
}

/// A panic of the other thread leaves the readings as good as they were.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This machine, with the GPU that computes, if one does.
struct Machine(Option<WatchedGpu>);

impl Source for Machine {
    fn ram(&mut self) -> Option<memory::Resident> {
        memory::resident()
    }

    fn vram(&mut self) -> Option<Result<Usage, String>> {
        let gpu = self.0.as_ref()?;
        Some(gpu.read().map_err(|error| error.to_string()))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::mpsc::Receiver;

    use super::*;

    type Reading = Result<Usage, String>;

    /// Gives the GPU's readings as they are sent, and none after the last.
    struct Script(Receiver<Reading>);

    impl Source for Script {
        fn ram(&mut self) -> Option<memory::Resident> {
            memory::resident()
        }

        fn vram(&mut self) -> Option<Reading> {
            self.0.recv().ok()
        }
    }

    fn scripted() -> (Sender<Reading>, Monitor) {
        let (readings, script) = channel();
        let mut shared = Shared::default();
        shared.readings.vram = Some(Vram::default());
        let interval = Duration::from_millis(1);
        let monitor = Monitor::watch(Script(script), shared, interval, Instant::now());
        (readings, monitor)
    }

    fn used(device_bytes: u64, process_bytes: Option<u64>) -> Usage {
        Usage {
            device_bytes,
            process_bytes,
        }
    }

    fn lost() -> Reading {
        Err("the GPU is lost".to_owned())
    }

    fn peak(series: &Series) -> Option<u64> {
        series.peak.as_ref().map(|peak| peak.bytes)
    }

    #[test]
    fn the_highest_readings_are_kept() {
        let check = |script: Vec<Reading>, device, process| {
            let (readings, monitor) = scripted();
            for reading in script {
                readings.send(reading).unwrap();
            }
            drop(readings);
            // The rest is read before the thread stops: each reading waits for the script alone.
            let vram = loop {
                let vram = monitor.live().readings();
                if vram.vram.as_ref().map(|vram| vram.device.samples) == Some(3) {
                    break monitor.finish().vram.unwrap();
                }
                std::thread::yield_now();
            };
            assert_eq!((peak(&vram.device), peak(&vram.process)), (device, process));
        };
        check(
            vec![Ok(used(5, None)), Ok(used(9, None)), Ok(used(7, None))],
            Some(9),
            None,
        );
        // Each on its own: another process may be what fills the device.
        check(
            vec![
                Ok(used(90, None)),
                Ok(used(50, Some(3))),
                Ok(used(80, Some(2))),
            ],
            Some(90),
            Some(3),
        );
    }

    #[test]
    fn a_gpu_that_vanishes_leaves_what_was_read_and_a_note() {
        let (readings, monitor) = scripted();
        for reading in [Ok(used(5, Some(4))), Ok(used(9, Some(6))), lost(), lost()] {
            readings.send(reading).unwrap();
        }
        let live = monitor.live();
        while live.readings().vram.unwrap().device.failed < 2 {
            std::thread::yield_now();
        }
        drop(readings);
        let readings = monitor.finish();
        let note = readings.note.unwrap();
        assert!(note.contains("2 of 4 readings"), "{note}");
        assert!(note.contains("the GPU is lost"), "{note}");
        let vram = readings.vram.unwrap();
        assert_eq!((vram.device.samples, vram.device.failed), (2, 2));
        assert_eq!(
            (peak(&vram.device), peak(&vram.process)),
            (Some(9), Some(6))
        );
    }

    #[test]
    fn the_peak_belongs_to_the_stage_that_ran() {
        let (readings, monitor) = scripted();
        let live = monitor.live();
        let wait = |samples| loop {
            let vram = live.readings().vram.unwrap();
            if vram.device.samples == samples {
                return vram.device.peak.unwrap();
            }
            std::thread::yield_now();
        };
        readings.send(Ok(used(1, None))).unwrap();
        assert_eq!(wait(1).stage, "");
        monitor.enter("attention");
        readings.send(Ok(used(7, None))).unwrap();
        assert_eq!(wait(2).stage, "attention");
        monitor.enter("mlp");
        readings.send(Ok(used(3, None))).unwrap();
        assert_eq!(wait(3).stage, "attention");
        readings.send(Ok(used(8, None))).unwrap();
        let peak = wait(4);
        assert_eq!((peak.bytes, &peak.stage[..]), (8, "mlp"));
        assert!(peak.seconds > 0.0);
        drop(readings);
    }

    #[test]
    fn the_hosts_peak_is_the_kernels_and_the_last_look_is_at_the_end() {
        let interval = Duration::from_hours(1);
        let monitor = Monitor::start(None, interval, Instant::now());
        while monitor.live().readings().ram.samples == 0 {
            std::thread::yield_now();
        }
        monitor.enter("a large vector");
        let before = memory::resident().unwrap();
        let more = before.peak_bytes - before.current_bytes + (64 << 20);
        std::hint::black_box(vec![1u8; more as usize]);
        let readings = monitor.finish();
        assert_eq!((readings.ram.samples, readings.ram.failed), (2, 0));
        let peak = readings.ram.peak.unwrap();
        assert!(peak.bytes > before.peak_bytes, "{peak:?}");
        assert_eq!(peak.stage, "a large vector");
        assert!(readings.vram.is_none() && readings.note.is_none());
    }

    #[test]
    fn dropping_the_monitor_stops_its_thread_at_once() {
        let monitor = Monitor::start(None, Duration::from_hours(1), Instant::now());
        let live = monitor.live();
        drop(monitor);
        assert_eq!(Arc::strong_count(&live.0), 1);
    }
}
