//! What is loaded, as metrics that are read when they are scraped: a model that is gone leaves no series behind.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::gauge::ConstGauge,
};

use crate::{Host, Hosted};

/// Of a revision, enough to tell it from others: its first characters, "sha256:" and 12 digits.
const REVISION_SHOWN: usize = 19;

/// Reads the catalog of a host.
pub(crate) struct ModelMetrics<M: Hosted>(pub(crate) Arc<Host<M>>);

impl<M: Hosted> fmt::Debug for ModelMetrics<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ModelMetrics")
    }
}

impl<M: Hosted> Collector for ModelMetrics<M> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let snapshot = self.0.catalog.snapshot();
        let loaded = ConstGauge::new(i64::try_from(snapshot.models().count()).unwrap_or(i64::MAX));
        let help = "Loaded revisions of models";
        loaded.encode(encoder.encode_descriptor("models_loaded", help, None, loaded.metric_type())?)?;
        let computed = ConstGauge::new(1_u64);
        let help = "How each loaded model is computed; always 1";
        let mut family = encoder.encode_descriptor("model_info", help, None, computed.metric_type())?;
        for (key, model) in snapshot.models() {
            let plan = &model.info().plan;
            let (path, device) = (plan.path.to_string(), plan.device.to_string());
            let labels = [
                ("model", key.name.as_str()),
                ("revision", shown(&key.revision)),
                ("precision", plan.precision.as_str()),
                ("path", &path),
                ("device", &device),
            ];
            computed.encode(family.encode_family(&labels)?)?;
        }
        let size = ConstGauge::new(0_u64);
        let help = "Bytes of the parameters of each loaded model";
        let mut family = encoder.encode_descriptor("model_parameter_bytes", help, None, size.metric_type())?;
        for (key, model) in snapshot.models() {
            let labels = [("model", key.name.as_str()), ("revision", shown(&key.revision))];
            ConstGauge::new(model.info().parameter_bytes).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn shown(revision: &str) -> &str {
    revision.get(..REVISION_SHOWN).unwrap_or(revision)
}
