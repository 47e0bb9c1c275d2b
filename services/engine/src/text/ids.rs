//! Token ids of texts, for whoever wants the same ids computed elsewhere.

use super::{Role, TextModel, Truncation};
use crate::ItemError;

impl TextModel {
    /// The tokens that the model reads of a text, special ones included; what is too long is cut at its end.
    pub fn token_ids(&self, text: &str, role: Role) -> Result<Vec<u32>, ItemError> {
        let tokenized = self.tokens.text(self.prompt(role), text, Truncation::End)?;
        Ok(tokenized.windows.into_iter().flat_map(|window| window.ids).collect())
    }
}
