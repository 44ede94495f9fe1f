//! Adapters of a smaller rank: the best approximation of every module's B·A (Eckart and Young, 1936).
//!
//! The singular values of B·A come from QR decompositions of both factors and the SVD of the small product R_B·R_Aᵀ, so
//! that the large matrix is never made. What is kept is told as energy: the share of the sum of squared singular values.

use faer::Mat;
use rayon::prelude::*;

use super::factors::{Lora, ModuleFactors};
use crate::{Error, Result};

/// How many singular values are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Size {
    /// So many of every module that has more.
    Rank(usize),
    /// Of every module as few as keep this share of its energy; above 0, at most 1.
    Energy(f64),
}

/// What became of a module.
#[derive(Debug, Clone, PartialEq)]
pub struct Resized {
    /// Component and module.
    pub module: String,
    /// Rank before.
    pub from: usize,
    /// Rank now.
    pub to: usize,
    /// Share of the energy that was kept.
    pub kept: f64,
    /// Energy of the change the module made: squared Frobenius norm of alpha / r · B·A.
    pub energy: f64,
}

/// Share of the energy that all modules together kept; 1 of nothing.
pub fn kept(modules: &[Resized]) -> f64 {
    let sum = |part: &dyn Fn(&Resized) -> f64| modules.iter().map(part).sum::<f64>();
    let whole = sum(&|m| m.energy);
    if whole > 0.0 {
        sum(&|m| m.kept * m.energy) / whole
    } else {
        1.0
    }
}

/// `lora` with the ranks that `size` allows. The scale alpha / r of every module stays, so alpha changes with the rank.
/// Modules that are small enough stay as they are, bit for bit. `done` is called after every module.
///
/// # Errors
/// A singular value decomposition does not converge.
pub fn resize(lora: &Lora, size: Size, done: &(dyn Fn() + Sync)) -> Result<(Lora, Vec<Resized>)> {
    let each = |module: &ModuleFactors| {
        let made = resize_module(module, size);
        done();
        made
    };
    let made: Vec<_> = lora.modules.par_iter().map(each).collect::<Result<_>>()?;
    let (modules, report) = made.into_iter().unzip();
    let metadata = lora.metadata.clone();
    Ok((Lora { modules, metadata }, report))
}

fn resize_module(module: &ModuleFactors, size: Size) -> Result<(ModuleFactors, Resized)> {
    let (from, columns, outputs) = (module.rank(), module.columns(), module.outputs());
    let at = |values: &[f32], index: usize| f64::from(values[index]);
    let b = Mat::from_fn(outputs, from, |i, j| at(&module.up.values, i * from + j));
    let a = Mat::from_fn(columns, from, |i, j| at(&module.down.values, j * columns + i));
    let (b, a) = (b.qr(), a.qr());
    let core = b.thin_R() * a.thin_R().transpose();
    let svd = core.thin_svd().map_err(|_| {
        let what = "has factors whose singular values cannot be found";
        Error::bad(module.place(), what, "Save the adapter anew.")
    })?;
    let values: Vec<f64> = svd.S().column_vector().iter().copied().collect();
    let energies: Vec<f64> = values.iter().map(|v| v * v).collect();
    let whole: f64 = energies.iter().sum();
    let to = chosen(&energies, whole, size).min(from);
    let kept = energies.iter().take(to).sum::<f64>();
    let report = Resized {
        module: module.place(),
        from,
        to,
        kept: if whole > 0.0 { (kept / whole).min(1.0) } else { 1.0 },
        energy: whole * module.scale().powi(2),
    };
    if to == from {
        return Ok((module.clone(), Resized { kept: 1.0, ..report }));
    }
    let up = b.compute_thin_Q() * svd.U();
    let down = a.compute_thin_Q() * svd.V();
    let mut made = module.clone();
    made.alpha = module.scale() * to as f64;
    let precision = |value: f64, of: &super::ReadTensor| of.precision.rounded(value as f32);
    made.up.shape[1] = to;
    made.up.values = (0..outputs * to)
        .map(|i| precision(up[(i / to, i % to)] * values[i % to].sqrt(), &module.up))
        .collect();
    made.down.shape[0] = to;
    made.down.values = (0..to * columns)
        .map(|i| {
            precision(
                down[(i % columns, i / columns)] * values[i / columns].sqrt(),
                &module.down,
            )
        })
        .collect();
    Ok((made, report))
}

/// How many of the singular values with these energies, the largest first, are kept; at least one.
fn chosen(energies: &[f64], whole: f64, size: Size) -> usize {
    match size {
        Size::Rank(rank) => rank.min(energies.len()),
        Size::Energy(share) => {
            let mut sum = 0.0;
            let enough = energies.iter().position(|energy| {
                sum += energy;
                sum >= share * whole
            });
            // Rounding can leave the sum of all below the whole.
            enough.map_or(energies.len(), |index| index + 1)
        }
    }
    .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::{ModuleName, Precision, ReadTensor};
    use crate::model_folder::Component;
    use crate::rng::{Purpose, Streams};

    fn module(down: (&[usize], Vec<f32>), up: (&[usize], Vec<f32>), alpha: f64) -> ModuleFactors {
        let tensor = |(shape, values): (&[usize], Vec<f32>)| ReadTensor {
            shape: shape.to_vec(),
            values,
            precision: Precision::Fp32,
        };
        ModuleFactors {
            component: Component::Unet,
            module: ModuleName::Path("m".into()),
            down: tensor(down),
            up: tensor(up),
            alpha,
        }
    }

    /// alpha / r · B·A, row by row.
    fn product(m: &ModuleFactors) -> Vec<f64> {
        let (rank, columns) = (m.rank(), m.columns());
        let cell = |i: usize| -> f64 {
            let (row, column) = (i / columns, i % columns);
            let term = |k: usize| {
                f64::from(m.up.values[row * rank + k]) * f64::from(m.down.values[k * columns + column])
            };
            (0..rank).map(term).sum::<f64>() * m.scale()
        };
        (0..m.outputs() * columns).map(cell).collect()
    }

    fn norm2(values: impl Iterator<Item = f64>) -> f64 {
        values.map(|v| v * v).sum()
    }

    fn resized(m: &ModuleFactors, size: Size) -> (ModuleFactors, Resized) {
        resize_module(m, size).unwrap()
    }

    /// Singular values of B·A are 3 and 1.
    fn known() -> ModuleFactors {
        module(
            (&[2, 2], vec![0.0, 1.0, 1.0, 0.0]),
            (&[3, 2], vec![3.0, 0.0, 0.0, 1.0, 0.0, 0.0]),
            4.0,
        )
    }

    #[test]
    fn the_largest_singular_values_are_kept() {
        let (small, report) = resized(&known(), Size::Rank(1));
        assert!(
            (report.kept - 0.9).abs() < 1e-12 && (report.energy - 40.0).abs() < 1e-9,
            "{report:?}"
        );
        // The scale stays: 4/2 = 2/1.
        assert_eq!((small.rank(), small.alpha), (1, 2.0));
        for (value, expected) in product(&small).iter().zip([0.0, 6.0, 0.0, 0.0, 0.0, 0.0]) {
            assert!((value - expected).abs() < 1e-6, "{value} {expected}");
        }
        assert_eq!(resized(&known(), Size::Energy(0.9)).1.to, 1);
        assert_eq!(resized(&known(), Size::Energy(0.91)).1.to, 2);
    }

    #[test]
    fn small_modules_keep_every_bit() {
        for size in [Size::Rank(2), Size::Rank(9), Size::Energy(1.0)] {
            let (same, report) = resized(&known(), size);
            assert_eq!((&same, report.kept), (&known(), 1.0));
        }
    }

    #[test]
    fn a_module_without_effect_becomes_as_small_as_can_be() {
        let nothing = module((&[2, 2], vec![1.0; 4]), (&[3, 2], vec![0.0; 6]), 2.0);
        let (small, report) = resized(&nothing, Size::Energy(0.5));
        assert_eq!((small.rank(), report.kept), (1, 1.0));
        assert!(product(&small).iter().all(|v| *v == 0.0));
    }

    /// What is lost, measured on the products themselves, is the energy that was not kept; also where the rank is larger
    /// than the layer, and for convolutions.
    #[test]
    fn the_loss_is_the_energy_that_is_reported() {
        for (rank, row, outputs) in [(6, vec![10], 8), (9, vec![5], 4), (5, vec![3, 3, 3], 12)] {
            let columns: usize = row.iter().product();
            let random = |name: &str, count: usize| {
                let mut values = vec![0.0_f32; count];
                Streams::new(4)
                    .named(Purpose::Noise, name)
                    .fill_normal(&mut values);
                values
            };
            let down = [&[rank], row.as_slice()].concat();
            let up = [[outputs, rank].as_slice(), &vec![1; row.len() - 1]].concat();
            let whole = module(
                (&down, random("a", rank * columns)),
                (&up, random("b", outputs * rank)),
                1.5,
            );
            let before = product(&whole);
            let (small, report) = resized(&whole, Size::Rank(3));
            assert_eq!(
                (small.down.shape[0], small.up.shape[1], small.down.shape.len()),
                (3, 3, down.len())
            );
            let lost = norm2(before.iter().zip(product(&small)).map(|(a, b)| a - b));
            let energy = norm2(before.iter().copied());
            assert!((report.energy / energy - 1.0).abs() < 1e-9);
            assert!(
                (lost / energy - (1.0 - report.kept)).abs() < 1e-6,
                "{lost} {report:?}"
            );
        }
    }
}
