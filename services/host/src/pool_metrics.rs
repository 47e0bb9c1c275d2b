//! The workers' state as metrics, read when they are scraped.

use std::{fmt, sync::Arc};

use engine::Pool;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

use crate::Hosted;

/// Reads a pool.
pub(crate) struct PoolMetrics<M: Hosted>(pub(crate) Arc<Pool<M>>);

impl<M: Hosted> fmt::Debug for PoolMetrics<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PoolMetrics")
    }
}

impl<M: Hosted> Collector for PoolMetrics<M> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let load = self.0.load();
        #[expect(clippy::cast_precision_loss, reason = "a metric needs no more than 53 bits")]
        let gauges = [
            ("pool_queued_units", "Units of work that wait for a worker", load.queued_units as f64),
            ("pool_running_units", "Units of work that workers compute now", load.running_units as f64),
            ("pool_workers", "Worker threads", load.workers as f64),
            ("pool_queue_wait_ms", "Milliseconds that a new call would wait, estimated", load.queue_ms),
            ("pool_ms_per_unit", "Recent milliseconds of a worker per unit of work", load.ms_per_unit),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let panics = ConstCounter::new(load.panics);
        let help = "Panics of a model; their items failed and the worker lives";
        panics.encode(encoder.encode_descriptor("pool_panics", help, None, panics.metric_type())?)?;
        Ok(())
    }
}
