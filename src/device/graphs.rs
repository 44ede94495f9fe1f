//! Graphs over one block of `n` values: copies, sums, norms, AdamW, and moving averages. They are those of [`crate::optim`] and
//! [`crate::reference`] in ONNX's operators, in the same order of operations.
//!
//! Outputs may be written over the inputs that they replace: nothing reads such an input after its output is written. Each
//! output is made by an elementwise operator that depends on all that read the input, or reads it itself, value by value.

use super::layout::ROW;
use crate::Result;
use crate::onnx::attr::Attrs;
use crate::onnx::{Graph, TensorType, ValueId};
use crate::tensor::DType;

const OPSET: i64 = 17;

/// A graph with its inputs.
struct Block {
    graph: Graph,
    n: usize,
}

impl Block {
    fn new(name: &str, n: usize) -> Self {
        Self {
            graph: Graph::new(name, OPSET),
            n,
        }
    }

    fn values(&mut self, name: &str) -> ValueId {
        self.values_of(name, DType::F32)
    }

    fn values_of(&mut self, name: &str, dtype: DType) -> ValueId {
        self.graph.add_input(name, TensorType::new(dtype, [self.n]))
    }

    fn number(&mut self, name: &str) -> ValueId {
        self.graph.add_input(name, TensorType::new(DType::F32, []))
    }

    fn output(&mut self, value: ValueId, name: &str) -> Result<()> {
        let value = self.graph.as_output(value, name)?;
        self.graph.outputs.push(value);
        Ok(())
    }

    /// `(1−share)·a + share·b`, exact at both ends; see [`crate::reference`].
    fn lerp(&mut self, a: ValueId, b: ValueId, share: ValueId) -> Result<ValueId> {
        let g = &mut self.graph;
        let difference = g.sub(b, a)?;
        let step = g.mul(share, difference)?;
        let near_a = g.add(a, step)?;
        let one = g.scalar(DType::F32, 1.0);
        let rest = g.sub(one, share)?;
        let back = g.mul(difference, rest)?;
        let near_b = g.sub(b, back)?;
        let half = g.scalar(DType::F32, 0.5);
        let is_small = g.op("Less", &[share, half], Attrs::default())?;
        g.select(is_small, near_a, near_b)
    }
}

/// `to = from`.
pub fn copy(n: usize) -> Result<Graph> {
    copy_of(n, DType::F32)
}

/// `to = from` for values of another type.
pub fn copy_of(n: usize, dtype: DType) -> Result<Graph> {
    let mut block = Block::new("copy", n);
    let from = block.values_of("from", dtype);
    let to = block.graph.op("Identity", &[from], Attrs::default())?;
    block.output(to, "to")?;
    Ok(block.graph)
}

/// `next_sum = sum + factor·gradient`.
pub fn add(n: usize) -> Result<Graph> {
    let mut block = Block::new("add", n);
    let (sum, gradient, factor) = (
        block.values("sum"),
        block.values("gradient"),
        block.number("factor"),
    );
    let scaled = block.graph.mul(gradient, factor)?;
    let next = block.graph.add(sum, scaled)?;
    block.output(next, "next_sum")?;
    Ok(block.graph)
}

/// `next_sum = factor·gradient`.
pub fn scale(n: usize) -> Result<Graph> {
    let mut block = Block::new("scale", n);
    let (gradient, factor) = (block.values("gradient"), block.number("factor"));
    let next = block.graph.mul(gradient, factor)?;
    block.output(next, "next_sum")?;
    Ok(block.graph)
}

/// `square`, the sum of the squares of `gradient`, row by row and then over rows.
pub fn square(n: usize) -> Result<Graph> {
    let mut block = Block::new("square", n);
    let gradient = block.values("gradient");
    let g = &mut block.graph;
    let squares = g.mul(gradient, gradient)?;
    let rows = g.reshape(squares, &[n / ROW, ROW])?;
    let sums = g.reduce("ReduceSum", rows, &[1], false)?;
    let square = g.reduce("ReduceSum", sums, &[0], false)?;
    block.output(square, "square")?;
    Ok(block.graph)
}

/// `next_average = lerp(average, values, share)`.
pub fn blend(n: usize) -> Result<Graph> {
    let mut block = Block::new("blend", n);
    let (average, values, share) = (
        block.values("average"),
        block.values("values"),
        block.number("share"),
    );
    let next = block.lerp(average, values, share)?;
    block.output(next, "next_average")?;
    Ok(block.graph)
}

/// One step of AdamW: weights `theta`, moments `m` and `v`, and their successors.
pub fn adamw(n: usize) -> Result<Graph> {
    let mut block = Block::new("adamw", n);
    let [theta, m, v, gradient] = ["theta", "m", "v", "gradient"].map(|name| block.values(name));
    let names = [
        "factor",
        "shrink",
        "one_minus_beta1",
        "beta2",
        "one_minus_beta2",
        "step_size",
        "second_correction",
        "eps",
    ];
    let [
        factor,
        shrink,
        one_minus_beta1,
        beta2,
        one_minus_beta2,
        step_size,
        second_correction,
        eps,
    ] = names.map(|name| block.number(name));
    let scaled = block.graph.mul(factor, gradient)?;
    let next_m = block.lerp(m, scaled, one_minus_beta1)?;
    let g = &mut block.graph;
    let kept = g.mul(v, beta2)?;
    let weighted = g.mul(one_minus_beta2, scaled)?;
    let added = g.mul(weighted, scaled)?;
    let next_v = g.add(kept, added)?;
    let root = g.unary("Sqrt", next_v)?;
    let corrected = g.div(root, second_correction)?;
    let denominator = g.add(corrected, eps)?;
    let numerator = g.mul(step_size, next_m)?;
    let change = g.div(numerator, denominator)?;
    let shrunk = g.mul(theta, shrink)?;
    let next_theta = g.sub(shrunk, change)?;
    block.output(next_m, "next_m")?;
    block.output(next_v, "next_v")?;
    block.output(next_theta, "next_theta")?;
    Ok(block.graph)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::optimizer::OptimizerConfig;
    use crate::device::{DeviceLayout, DeviceSet, Kernel, Memory};
    use crate::optim::{AdamW, Follow, Gradient, Term};
    use crate::params::{Layout, ParamSet};
    use crate::reference::Blend;
    use crate::rng::{Purpose, Streams};
    use crate::runtime::SessionOptions;

    fn random(layout: &std::sync::Arc<Layout>, name: &str) -> ParamSet {
        let mut set = ParamSet::zeros(layout);
        Streams::new(1)
            .named(Purpose::Noise, name)
            .fill_normal(set.values_mut());
        set
    }

    /// Largest difference of two sets of values of about 1.
    fn apart(one: &ParamSet, other: &ParamSet) -> f32 {
        let pairs = one.values().iter().zip(other.values());
        pairs.fold(0.0, |max, (a, b)| max.max((a - b).abs()))
    }

    #[test]
    fn steps_are_those_of_the_host() {
        let shapes = [("a", vec![300, 7]), ("b", vec![5]), ("c", vec![4, 1000])];
        let layout = Layout::new(shapes.map(|(name, shape)| (name.to_owned(), shape))).unwrap();
        let options = SessionOptions::default();
        let device = DeviceLayout::new(&layout);
        let mut memory = Memory::new(&device, &options).unwrap();
        let mut kernel = Kernel::new(&adamw(device.block()).unwrap(), &options).unwrap();
        let mut mixing = Kernel::new(&blend(device.block()).unwrap(), &options).unwrap();
        let mut squaring = Kernel::new(&square(device.block()).unwrap(), &options).unwrap();
        let config = OptimizerConfig::default();
        let [mut policy, mut reference, initial] =
            ["policy", "reference", "initial"].map(|n| random(&layout, n));
        let [theta, r, start, g, m, v]: [DeviceSet; 6] = std::array::from_fn(|_| memory.zeros().unwrap());
        for (set, values) in [(&theta, &policy), (&r, &reference), (&start, &initial)] {
            memory.upload(values, set).unwrap();
        }
        let (mut host, mut counter) = (AdamW::new(&config, &layout), AdamW::new(&config, &layout));
        // Shares on both sides of a half, where the formula of a mixture changes.
        for (step, alpha) in [0.01, 0.7, 0.3].into_iter().enumerate() {
            let gradient = random(&layout, &format!("gradient {step}"));
            memory.upload(&gradient, &g).unwrap();
            let moving = Blend::new(alpha, 0.2);
            let term = Gradient::of(Term::from_set(&gradient, 0.5));
            let norm = term.norms().total;
            let follow = Follow {
                reference: &mut reference,
                initial: &initial,
                blend: moving,
            };
            host.step(&mut policy, &term, 0.25, 0.1, Some(follow));

            let found = squaring.run(0, &[], &[("gradient", &g)], &[]).unwrap();
            let found = 0.5 * f64::from(found.scalar("square").unwrap()).sqrt();
            assert!((found / norm - 1.0).abs() < 1e-6, "{found} {norm}");
            let numbers = counter.next(0.5, None, 0.25, 0.1).named();
            let read = [("theta", &theta), ("m", &m), ("v", &v), ("gradient", &g)];
            let written = [("next_theta", &theta), ("next_m", &m), ("next_v", &v)];
            kernel.run(0, &numbers, &read, &written).unwrap();
            for (share, values) in moving.shares().into_iter().zip([&theta, &start]) {
                let read = [("average", &r), ("values", values)];
                mixing
                    .run(0, &[("share", share)], &read, &[("next_average", &r)])
                    .unwrap();
            }
        }
        let (first, second) = host.moments();
        for (set, values) in [(&theta, &policy), (&r, &reference), (&m, first), (&v, second)] {
            let mut found = ParamSet::zeros(&layout);
            memory.download(set, &mut found).unwrap();
            let apart = apart(&found, values);
            assert!(apart < 1e-6, "{apart:e}");
        }
    }
}
