//! What a call of Classify, or a whole stream, has settled: model and parameters.

use std::sync::Arc;

use chassis::refusal::Refusal;
use engine::{ItemError, TextInput, TextModel, TextOutput};
use host::{Host, LabelChoice, Scored};
use proto::{classification::v1 as pb, common::v1 as common};

use crate::parse::{self, Pairs};

/// How texts become the labels that were asked for.
pub(crate) struct Plan {
    pub(crate) model: Arc<TextModel>,
    choice: LabelChoice,
}

impl Plan {
    pub(crate) fn new(
        host: &Host<TextModel>,
        method: &str,
        selector: Option<&common::ModelSelector>,
        params: Option<&pb::ClassifyParams>,
    ) -> Result<Self, Refusal> {
        host::refuse_space(selector)?;
        let choice = LabelChoice::parse(params, usize::MAX)?;
        let model = host.catalog.select(selector, method)?;
        host::labelling(&*model)?;
        Ok(Self { model, choice })
    }

    pub(crate) fn inputs(&self, inputs: Vec<pb::TextInput>) -> Vec<Result<TextInput, ItemError>> {
        let pairs = if self.model.base().is_some() { Pairs::Refused } else { Pairs::Taken };
        inputs.into_iter().map(|input| parse::input(input, pairs)).collect()
    }

    /// The results of a call or of a batch.
    pub(crate) fn results(
        &self,
        outcomes: Vec<Result<TextOutput, ItemError>>,
    ) -> Result<Vec<pb::ClassifyResult>, Refusal> {
        let head = host::labelling(&*self.model)?;
        let scored =
            |output: TextOutput| Scored { logits: output.values, tokens: output.tokens, truncated: output.truncated };
        Ok(host::label_results(outcomes.into_iter().map(|result| result.map(scored)), head, self.choice))
    }
}
