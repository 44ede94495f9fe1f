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
