use proptest::prelude::*;

use super::*;

const SETTINGS: Settings = Settings { l2: 1e-4, balance: Balance::Examples, steps_max: 500 };

/// Numbers that look random and are the same everywhere, -1 to 1.
fn noise(seed: &mut u64) -> f32 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
}

struct Data {
    vectors: Vec<f32>,
    classes: Vec<u32>,
    dimensions: usize,
    labels: usize,
}

impl Data {
    /// Clouds of these sizes, one for each label: `noise` wide around points at a distance of about 1.
    fn clouds(sizes: &[usize], dimensions: usize, spread: f32) -> Self {
        let mut seed = 3;
        let (mut vectors, mut classes) = (Vec::new(), Vec::new());
        for (class, size) in sizes.iter().enumerate() {
            let middle: Vec<f32> = (0..dimensions).map(|_| noise(&mut seed)).collect();
            for _ in 0..*size {
                vectors.extend(middle.iter().map(|x| x + spread * noise(&mut seed)));
                classes.push(class as u32);
            }
        }
        Self { vectors, classes, dimensions, labels: sizes.len() }
    }

    fn examples(&self) -> Examples<'_> {
        let Self { vectors, classes, dimensions, labels } = self;
        Examples { vectors, classes, dimensions: *dimensions, labels: *labels }
    }

    fn rows(&self) -> Vec<usize> {
        (0..self.classes.len()).collect()
    }

    fn groups(&self) -> Vec<u64> {
        (0..self.classes.len() as u64).collect()
    }

    fn validated(&self, settings: Settings) -> Validated {
        validate(self.examples(), &self.groups(), 5, settings, &|| ())
    }

    fn confusion(&self, logits: &[f32]) -> Confusion {
        let best = |row: &[f32]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as u32;
        let chosen = logits.chunks_exact(self.labels).map(best);
        Confusion::count(self.labels, self.classes.iter().copied().zip(chosen))
    }
}

#[test]
fn what_is_separable_is_learnt() {
    for labels in [2, 3, 7] {
        let data = Data::clouds(&vec![40; labels], 20, 0.3);
        let validated = data.validated(SETTINGS);
        assert!(validated.trained.converged, "{} steps", validated.trained.steps);
        assert_eq!(data.confusion(&validated.logits).accuracy(), 1.0, "{labels} labels");
    }
}

#[test]
fn what_no_line_divides_is_not_learnt() {
    let mut data = Data::clouds(&[400], 2, 1.0);
    let signs = |row: &[f32]| u32::from((row[0] > 0.0) != (row[1] > 0.0));
    data.vectors.iter_mut().for_each(|x| *x *= 0.5);
    // Around the origin, whatever the cloud's middle is.
    let mean = |axis: usize| data.vectors.iter().skip(axis).step_by(2).sum::<f32>() / 400.0;
    let means = [mean(0), mean(1)];
    data.vectors.iter_mut().enumerate().for_each(|(index, x)| *x -= means[index % 2]);
    data.classes = data.vectors.chunks_exact(2).map(signs).collect();
    data.labels = 2;
    let accuracy = data.confusion(&data.validated(SETTINGS).logits).accuracy();
    assert!(accuracy < 0.65, "a line cannot tell XOR apart, and cross-validation must not say it can: {accuracy}");
}

#[test]
fn balanced_labels_raise_the_recall_of_the_rare_one() {
    let data = Data::clouds(&[600, 30], 6, 2.5);
    let recall = |balance| {
        let validated = data.validated(Settings { balance, ..SETTINGS });
        data.confusion(&validated.logits).recall(1)
    };
    let (plain, balanced) = (recall(Balance::Examples), recall(Balance::Labels));
    assert!(balanced > plain + 0.1, "{balanced} after {plain}");
}

#[test]
fn the_same_examples_give_the_same_bits() {
    let data = Data::clouds(&[50, 60, 70], 17, 1.5);
    let (first, second) = (data.validated(SETTINGS), data.validated(SETTINGS));
    assert_eq!(first.trained, second.trained);
    assert_eq!(first.logits, second.logits);
    assert_eq!(first.folds, second.folds);
}

#[test]
fn the_gradient_is_that_of_the_value() {
    let data = Data::clouds(&[20, 10, 5], 7, 1.0);
    for balance in [Balance::Examples, Balance::Labels] {
        let rows = data.rows();
        let mut objective = Objective::new(data.examples(), &rows, Settings { l2: 0.1, balance, steps_max: 1 });
        let mut seed = 9;
        let at: Vec<f64> = (0..24).map(|_| f64::from(noise(&mut seed))).collect();
        let (mut gradient, mut scratch) = (vec![0.0; 24], vec![0.0; 24]);
        objective.evaluate(&at, &mut gradient);
        for (index, slope) in gradient.iter().enumerate() {
            // The step is wide, for values are sums of f32 products.
            let mut value = |step: f64| {
                let mut there = at.clone();
                there[index] += step;
                objective.evaluate(&there, &mut scratch)
            };
            let measured = (value(0.01) - value(-0.01)) / 0.02;
            assert!((slope - measured).abs() < 1e-4, "{index}: {slope} instead of {measured}");
        }
    }
}

#[test]
fn the_minimum_is_where_the_gradient_vanishes() {
    let data = Data::clouds(&[80, 40, 20], 12, 2.0);
    let rows = data.rows();
    let trained = train(data.examples(), &rows, SETTINGS);
    let mut objective = Objective::new(data.examples(), &rows, SETTINGS);
    let at: Vec<f64> = trained.layer.weight.iter().chain(&trained.layer.bias).map(|x| f64::from(*x)).collect();
    let mut gradient = vec![0.0; at.len()];
    objective.evaluate(&at, &mut gradient);
    let steepest = gradient.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    assert!(trained.converged && steepest < 1e-5, "{steepest} after {} steps", trained.steps);
}

#[test]
fn a_valley_that_bends_is_followed_to_its_end() {
    // Convex, and a thousand times steeper one way than the other.
    let function = |at: &[f64], gradient: &mut [f64]| {
        let (x, y) = (at[0] - 3.0, at[1] + 2.0);
        gradient[0] = 2.0 * x;
        gradient[1] = 2000.0 * y + 4.0 * y.powi(3);
        x * x + 1000.0 * y * y + y.powi(4)
    };
    let minimum = minimize::minimize(function, vec![0.0, 0.0], 100);
    assert!(minimum.converged && (minimum.at[0] - 3.0).abs() < 1e-5 && (minimum.at[1] + 2.0).abs() < 1e-5);
}

#[test]
fn calibration_lowers_the_log_loss_and_finds_the_temperature_that_was_hidden() {
    let data = Data::clouds(&[300, 300], 8, 2.0);
    let validated = data.validated(SETTINGS);
    for hidden in [0.3_f32, 1.0, 4.0] {
        let logits: Vec<f32> = validated.logits.iter().map(|logit| logit * hidden).collect();
        let found = temperature(&logits, &data.classes);
        let losses = [found, found * 1.05, found / 1.05, 1.0].map(|t| log_loss(&logits, &data.classes, t));
        assert!(losses[1..].iter().all(|loss| losses[0] <= *loss), "{losses:?} at {found}");
        let expected = temperature(&validated.logits, &data.classes) * hidden;
        assert!((found / expected - 1.0).abs() < 1e-3, "{found} instead of {expected}");
    }
}

#[test]
fn thresholds_serve_their_goals() {
    let scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4];
    let positive = [true, true, false, true, false, false];
    let f1 = threshold(&scores, &positive, Goal::F1).unwrap();
    assert!((f1.value - 0.55).abs() < 1e-6 && (f1.recall, f1.precision) == (1.0, 0.75), "{f1:?}");
    let sure = threshold(&scores, &positive, Goal::Precision(0.9)).unwrap();
    assert!((sure.value - 0.75).abs() < 1e-6 && sure.precision == 1.0, "{sure:?}");
    assert_eq!(threshold(&[0.9, 0.1], &[false, true], Goal::Precision(0.9)), None);
    assert_eq!(threshold(&[0.9, 0.1], &[false, false], Goal::F1), None);
}

#[test]
fn equal_examples_are_held_out_together_and_labels_are_spread() {
    let data = Data::clouds(&[100, 20], 4, 1.0);
    let groups: Vec<u64> = (0..120).map(|row| row / 2).collect();
    let folds = folds::stratified(data.examples(), &groups, 5);
    assert!(folds.chunks_exact(2).all(|pair| pair[0] == pair[1]));
    for fold in 0..5 {
        let of = |rows: std::ops::Range<usize>| folds[rows].iter().filter(|f| **f == fold).count();
        assert_eq!((of(0..100), of(100..120)), (20, 4));
    }
}

#[test]
fn a_confusion_counts_what_was_taken_for_what() {
    let confusion = Confusion::count(2, [(0, 0), (0, 0), (0, 1), (1, 1)]);
    assert_eq!((confusion.accuracy(), confusion.at(0, 1)), (0.75, 1));
    assert_eq!((confusion.precision(1), confusion.recall(1), confusion.recall(0)), (0.5, 1.0, 2.0 / 3.0));
    assert_eq!(Confusion::count(2, []).macro_f1(), 0.0);
}

#[test]
fn a_layer_is_read_as_it_was_written() {
    let layer = train(Data::clouds(&[5, 5], 3, 0.1).examples(), &(0..10).collect::<Vec<_>>(), SETTINGS).layer;
    let bytes = layer.safetensors().unwrap();
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
    assert_eq!(tensors["weight"].to_vec2::<f32>().unwrap().concat(), layer.weight);
    assert_eq!(tensors["bias"].to_vec1::<f32>().unwrap(), layer.bias);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn every_example_counts_once_and_folds_differ_by_one(sizes in prop::collection::vec(1_usize..30, 2..5), folds in 2_u32..8) {
        let data = Data::clouds(&sizes, 2, 1.0);
        let fold_of = folds::stratified(data.examples(), &data.groups(), folds);
        for class in 0..sizes.len() as u32 {
            let count = |fold: u32| fold_of.iter().zip(&data.classes).filter(|(f, c)| (**f, **c) == (fold, class)).count();
            let counts: Vec<usize> = (0..folds).map(count).collect();
            prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{:?}", counts);
            prop_assert_eq!(counts.iter().sum::<usize>(), sizes[class as usize]);
        }
    }
}
