//! The test that a model must pass before it gets traffic.

use engine::{
    Content, First, ImageInput, ImageModel, ImageOutputKind, ImageSource, Model, ModelInfo, PixelFormat, RawImage,
    Role, Task, TextInput, TextModel, Truncation, Watch, Work,
};

/// Reads as a sentence in the languages of most tokenizers, and is cut where a model takes fewer tokens.
const TEXT: &str = "A fine mesh lets through what is small enough.";

/// Tests a model for texts.
pub(crate) fn text(model: &TextModel) -> Result<(), String> {
    let content = || match model.info().task {
        Task::Rerank => Content::Pair(First::text(TEXT), TEXT.to_owned()),
        _ => Content::Text(TEXT.to_owned(), Role::default()),
    };
    let input = || TextInput { content: content(), work: Work::Compute(Truncation::End) };
    twice(model, input, |output| output.values, components(model.info()))
}

/// Tests a model for images: labels and vectors.
pub(crate) fn image(model: &ImageModel) -> Result<(), String> {
    let info = model.info();
    for (output, size) in
        [(ImageOutputKind::Logits, info.labels.len()), (ImageOutputKind::Features, info.dimensions as usize)]
    {
        // Black, white and colours between them.
        let pixels: Vec<u8> = vec![0, 0, 0, 255, 255, 255, 200, 40, 90, 10, 160, 250];
        let raw = RawImage { width: 2, height: 2, format: PixelFormat::Rgb8, pixels: pixels.into() };
        let input = || ImageInput { source: ImageSource::Raw(raw.clone()), crop: None, output };
        twice(model, input, |output| output.values, size)?;
    }
    Ok(())
}

/// Numbers that one input of a model for texts gives.
fn components(info: &ModelInfo) -> usize {
    match info.task {
        Task::Rerank => 1,
        _ if info.labels.is_empty() => info.dimensions as usize,
        _ => info.labels.len(),
    }
}

fn twice<M: Model>(
    model: &M,
    input: impl Fn() -> M::Input,
    values: impl Fn(M::Output) -> Vec<f32>,
    size: usize,
) -> Result<(), String> {
    let run = || {
        let mut outputs = model.run(&[&input()], &mut Watch::start(&|| true));
        let output = outputs.pop().ok_or("the self-test gave no answer")?;
        output.map(&values).map_err(|error| format!("the self-test failed: {error}"))
    };
    let (first, second) = (run()?, run()?);
    if first.len() != size {
        return Err(format!("the self-test gave {} numbers, it should be {size}", first.len()));
    }
    if !first.iter().all(|value| value.is_finite()) {
        return Err("the self-test gave numbers that are not finite".to_owned());
    }
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    if bits(&first) != bits(&second) {
        return Err("the self-test gave other numbers the second time".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use engine::{ItemError, Reason};

    use super::*;

    /// Answers with what it was told, one answer a run.
    struct Script(Mutex<Vec<Answer>>);

    type Answer = Result<Vec<f32>, ItemError>;

    impl Model for Script {
        type Input = ();
        type Output = Vec<f32>;

        fn units(&self, (): &()) -> u32 {
            1
        }

        fn run(&self, _: &[&()], _: &mut Watch<'_>) -> Vec<Result<Vec<f32>, ItemError>> {
            self.0.lock().unwrap().pop().into_iter().collect()
        }
    }

    #[track_caller]
    fn check(answers: [Result<Vec<f32>, ItemError>; 2], complaint: &str) {
        let script = Script(Mutex::new(answers.into()));
        let said = twice(&script, || (), |values| values, 2).err().unwrap_or_default();
        assert!(said.contains(complaint) && said.is_empty() == complaint.is_empty(), "{said:?} for {complaint:?}");
    }

    #[test]
    fn only_the_same_finite_numbers_twice_and_as_many_as_expected_pass() {
        check([Ok(vec![1.0, 2.0]), Ok(vec![1.0, 2.0])], "");
        check([Ok(vec![1.0, 2.5]), Ok(vec![1.0, 2.0])], "the second time");
        check([Ok(vec![1.0]), Ok(vec![1.0])], "1 numbers, it should be 2");
        check([Ok(vec![f32::NAN, 1.0]), Ok(vec![f32::NAN, 1.0])], "not finite");
        check([Err(ItemError::new(Reason::Engine, "broken")), Ok(vec![1.0, 2.0])], "broken");
    }
}
