//! Packing and writing beside the computation, on a thread of its own.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::checkpoint::Writer;
use crate::pack::Format;
use crate::quant::QuantizedLinear;

/// Jobs that may wait: more would only hold memory, since writing is faster than solving.
const CAPACITY: usize = 4;

/// What can be written.
enum Job {
    /// A module's codes, in the run's format.
    Linear(String, QuantizedLinear),
    /// A tensor's values, as float16.
    Float16(String, Vec<f32>),
    /// A step is done: everything sent so far is to be brought to the disk and journaled as this.
    Settled(Value),
}

/// The sending end.
pub struct Outbox {
    jobs: SyncSender<Job>,
}

impl Outbox {
    /// Runs `work` with an outbox whose jobs go to `writer` in their order; returns once all are done, with the seconds
    /// that they took.
    ///
    /// # Errors
    /// That of the first job that failed, which also ends `work` early; else that of `work`.
    pub fn with<T>(
        writer: &Writer,
        format: Format,
        work: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<(T, Duration)> {
        std::thread::scope(|scope| {
            let (jobs, waiting) = sync_channel(CAPACITY);
            let worker = scope.spawn(move || drain(writer, format, &waiting));
            let outbox = Self { jobs };
            let done = work(&outbox);
            // Tells the worker that no more comes.
            drop(outbox);
            let busy = worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok((done?, busy))
        })
    }

    pub fn linear(&self, module: String, quantized: QuantizedLinear) -> Result<()> {
        self.send(Job::Linear(module, quantized))
    }

    pub fn float16(&self, name: String, values: Vec<f32>) -> Result<()> {
        self.send(Job::Float16(name, values))
    }

    pub fn settled(&self, record: Value) -> Result<()> {
        self.send(Job::Settled(record))
    }

    fn send(&self, job: Job) -> Result<()> {
        // The worker's own error is the one that is reported.
        self.jobs.send(job).ok().context("writing stopped")
    }
}

/// Does the jobs until the outbox is dropped; returns the time that was not spent waiting.
fn drain(writer: &Writer, format: Format, waiting: &Receiver<Job>) -> Result<Duration> {
    let mut busy = Duration::ZERO;
    for job in waiting {
        let start = Instant::now();
        match job {
            Job::Linear(module, quantized) => {
                for (suffix, bytes) in format.pack(&quantized) {
                    writer.write(&format!("{module}.{suffix}"), &bytes)?;
                }
            }
            Job::Float16(name, values) => {
                let bytes = crate::tensor::f16_bytes(values.iter().copied())
                    .with_context(|| name.clone())?;
                writer.write(&name, &bytes)?;
            }
            Job::Settled(record) => writer.step_done(&record)?,
        }
        busy += start.elapsed();
    }
    Ok(busy)
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;
    use serde_json::{Map, json};

    use super::*;
    use crate::checkpoint::{Checkpoint, TensorSpec};

    fn with<T>(work: impl FnOnce(&Outbox) -> Result<T>) -> (tempfile::TempDir, Result<T>) {
        let dir = tempfile::tempdir().unwrap();
        let specs = ["a", "b"].map(|name| TensorSpec {
            name: name.to_owned(),
            dtype: Dtype::F16,
            shape: vec![2],
        });
        let target = dir.path().join("out");
        let (writer, _) = Writer::open(&target, specs.into(), 1000, false, &Map::new()).unwrap();
        let result = Outbox::with(&writer, Format::AwqGemm, work).and_then(|(value, _)| {
            writer.finish()?;
            Ok(value)
        });
        (dir, result)
    }

    #[test]
    fn what_was_sent_is_written_when_it_returns() {
        let (dir, result) = with(|outbox| {
            outbox.float16("b".into(), vec![1.0, 2.0])?;
            outbox.float16("a".into(), vec![3.0, 4.0])?;
            outbox.settled(json!("all"))
        });
        result.unwrap();
        let written = Checkpoint::open(&dir.path().join("out")).unwrap();
        let a = written.tensor("a", &[2]).unwrap();
        assert_eq!(crate::tensor::to_f32(&a).unwrap(), [3.0, 4.0]);
    }

    #[test]
    fn a_failed_job_ends_the_work_with_its_own_error() {
        let (dir, result) = with(|outbox| {
            // Too large for float16; what comes after is refused as soon as the worker is gone.
            outbox.float16("a".into(), vec![1e6, 0.0])?;
            loop {
                outbox.settled(json!("never"))?;
            }
            #[expect(unreachable_code, reason = "the closure's type")]
            Ok(())
        });
        let error = format!("{:#}", result.unwrap_err());
        assert!(error.starts_with("a: value 1000000"), "{error}");
        assert!(!dir.path().join("out").exists());
    }

    #[test]
    fn the_works_own_error_is_kept() {
        let (_dir, result) = with(|_| -> Result<()> { anyhow::bail!("mine") });
        assert_eq!(result.unwrap_err().to_string(), "mine");
    }
}
