//! Finds the minimum of a smooth convex function: L-BFGS (Liu and Nocedal, "On the limited memory BFGS method for large
//! scale optimization", 1989; in the form of algorithms 7.4 and 7.5 of Nocedal and Wright, "Numerical Optimization", 2006).

use std::collections::VecDeque;

/// Steps whose curvature is remembered.
const MEMORY: usize = 10;
/// The minimum is reached when no component of the gradient is larger. Losses are near 1, and f32 sums know seven digits.
const SLOPE: f64 = 1e-6;
/// Share of the promised descent that a step must keep (Armijo's condition).
const DESCENT: f64 = 1e-4;
/// Halvings before a step is given up: the rest is rounding.
const HALVINGS: u32 = 30;

/// Where the minimum is.
pub(super) struct Minimum {
    pub(super) at: Vec<f64>,
    pub(super) steps: u32,
    pub(super) converged: bool,
}

/// One step: how far it went, how the gradient changed, and the inverse of their product.
struct Step {
    way: Vec<f64>,
    change: Vec<f64>,
    inverse: f64,
}

/// Minimises `function`, which writes its gradient and returns its value.
pub(super) fn minimize(
    mut function: impl FnMut(&[f64], &mut [f64]) -> f64,
    start: Vec<f64>,
    steps_max: u32,
) -> Minimum {
    let mut at = start;
    let mut gradient = vec![0.0; at.len()];
    let mut value = function(&at, &mut gradient);
    let (mut there, mut slope) = (at.clone(), gradient.clone());
    let mut memory = VecDeque::with_capacity(MEMORY);
    for steps in 0..steps_max {
        if gradient.iter().all(|x| x.abs() <= SLOPE) {
            return Minimum { at, steps, converged: true };
        }
        let direction = direction(&gradient, &memory);
        let promise = dot(&direction, &gradient);
        // Without a memory the direction has no length of its own.
        let mut length = if memory.is_empty() { 1.0 / dot(&gradient, &gradient).sqrt() } else { 1.0 };
        let mut halvings = 0;
        let reached = loop {
            for ((there, at), direction) in there.iter_mut().zip(&at).zip(&direction) {
                *there = at + length * direction;
            }
            let reached = function(&there, &mut slope);
            if reached <= value + DESCENT * length * promise {
                break reached;
            }
            halvings += 1;
            if halvings == HALVINGS {
                return Minimum { at, steps, converged: true };
            }
            length *= 0.5;
        };
        let difference = |to: &[f64], from: &[f64]| to.iter().zip(from).map(|(to, from)| to - from).collect::<Vec<_>>();
        let (way, change) = (difference(&there, &at), difference(&slope, &gradient));
        let product = dot(&way, &change);
        // A step without measurable curvature teaches nothing.
        if product > 1e-12 * dot(&change, &change) {
            if memory.len() == MEMORY {
                memory.pop_front();
            }
            memory.push_back(Step { way, change, inverse: 1.0 / product });
        }
        std::mem::swap(&mut at, &mut there);
        std::mem::swap(&mut gradient, &mut slope);
        value = reached;
    }
    Minimum { at, steps: steps_max, converged: false }
}

/// Downhill, bent by the curvature of the steps so far: the two-loop recursion.
fn direction(gradient: &[f64], memory: &VecDeque<Step>) -> Vec<f64> {
    let mut direction: Vec<f64> = gradient.iter().map(|x| -x).collect();
    let mut shares = Vec::with_capacity(memory.len());
    for step in memory.iter().rev() {
        let share = step.inverse * dot(&step.way, &direction);
        add(&mut direction, -share, &step.change);
        shares.push(share);
    }
    if let Some(last) = memory.back() {
        let scale = 1.0 / (last.inverse * dot(&last.change, &last.change));
        direction.iter_mut().for_each(|x| *x *= scale);
    }
    for (step, share) in memory.iter().zip(shares.into_iter().rev()) {
        let correction = share - step.inverse * dot(&step.change, &direction);
        add(&mut direction, correction, &step.way);
    }
    direction
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(sum: &mut [f64], times: f64, vector: &[f64]) {
    sum.iter_mut().zip(vector).for_each(|(sum, x)| *sum += times * x);
}
