//! What a call of Embed, or a whole stream, has settled: model, parameters, space.

use std::sync::Arc;

use chassis::refusal::Refusal;
use engine::{ItemError, TextInput, TextModel, TextOutput, normalize};
use host::{Host, Vector, bad_parameter};
use proto::{common::v1 as common, embedding::v1 as pb};

use crate::parse::Params;

/// How texts become the vectors that were asked for.
pub(crate) struct Plan {
    pub(crate) model: Arc<TextModel>,
    pub(crate) params: Params,
    /// The space in which the vectors lie.
    pub(crate) space_id: String,
    /// Components of the vectors.
    pub(crate) dimensions: u32,
    unit: bool,
}

impl Plan {
    pub(crate) fn new(
        host: &Host<TextModel>,
        method: &str,
        selector: Option<&common::ModelSelector>,
        params: Option<&pb::EmbedParams>,
    ) -> Result<Self, Refusal> {
        let params = Params::parse(params)?;
        let model = host.catalog.select(selector, method)?;
        let info = model.info();
        let dimensions = params.dimensions.unwrap_or(info.dimensions);
        if dimensions > info.dimensions {
            let message = format!("dimensions is {dimensions}, {} has {}", info.name, info.dimensions);
            return Err(bad_parameter("params.dimensions", message));
        }
        let unit = params.normalize.unwrap_or(info.normalize_default);
        let space_id = info.space_id(unit, params.dimensions);
        host::require_space(selector, &space_id)?;
        Ok(Self { model, params, space_id, dimensions, unit })
    }

    pub(crate) fn inputs(&self, inputs: Vec<pb::EmbedInput>) -> Vec<Result<TextInput, ItemError>> {
        inputs.into_iter().map(|input| self.params.input(input)).collect()
    }

    /// The results of a call or of a batch.
    pub(crate) fn results(&self, outcomes: Vec<Result<TextOutput, ItemError>>) -> Vec<pb::EmbedResult> {
        let vector = |output: TextOutput| {
            let mut values = output.values;
            values.truncate(self.dimensions as usize);
            if self.unit {
                normalize(&mut values);
            }
            Vector { values, tokens: output.tokens, truncated: output.truncated }
        };
        host::vector_results(outcomes.into_iter().map(|result| result.map(vector)), self.params.encoding)
    }
}
