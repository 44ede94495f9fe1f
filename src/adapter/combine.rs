//! Several adapters as one: `Σ sᵢ·Bᵢ·Aᵢ = [s₁B₁ s₂B₂ …]·[A₁; A₂; …]`, of rank r₁ + r₂ + ….

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::factors::{Lora, ModuleFactors};
use super::file::{Precision, ReadTensor};
use super::keys::ModuleName;
use crate::{Error, Result};

/// An adapter and how much it counts.
#[derive(Debug, Clone)]
pub struct Part {
    /// Its file, for messages and the note in the result.
    pub path: PathBuf,
    /// Its content.
    pub lora: Lora,
    /// Factor of the change it makes.
    pub scale: f64,
}

/// Key of the note that says what a combined file is made of.
const NOTE: &str = "ortdpo.merged";

/// The adapter that changes a model as `parts` together do. Where all factors of a module count equally, none of their
/// numbers changes; elsewhere each B takes in its scale.
///
/// # Errors
/// Adapters have a module of one name with different shapes: they are not of one model.
pub fn combine(parts: &[Part]) -> Result<Lora> {
    let mut by_module: BTreeMap<(&str, String), Vec<(&Part, &ModuleFactors)>> = BTreeMap::new();
    for part in parts {
        for module in &part.lora.modules {
            let key = (module.component.folder(), module.module.flat());
            by_module.entry(key).or_default().push((part, module));
        }
    }
    check_shapes(by_module.values().map(Vec::as_slice))?;
    let modules = by_module.into_values().map(|found| join(&found));
    let name = |part: &Part| {
        let file = part.path.file_name().unwrap_or_default().to_string_lossy();
        format!("{file}:{}", part.scale)
    };
    let note = parts.iter().map(name).collect::<Vec<_>>().join(" ");
    Ok(Lora {
        modules: modules.collect(),
        metadata: BTreeMap::from([(NOTE.to_owned(), note)]),
    })
}

/// Adapters that have a module in common, each with its factors.
type Common<'a> = [(&'a Part, &'a ModuleFactors)];

/// Refuses modules whose factors have other shapes in one adapter than in another; of those the first is shown.
fn check_shapes<'a>(modules: impl Iterator<Item = &'a Common<'a>>) -> Result<()> {
    let (mut common, mut differing) = (0, Vec::new());
    for found in modules.filter(|found| found.len() > 1) {
        common += 1;
        let shape = |module: &ModuleFactors| (module.columns(), module.outputs());
        let other = found
            .iter()
            .find(|(_, module)| shape(module) != shape(found[0].1));
        differing.extend(other.map(|other| (found[0], *other)));
    }
    let Some(&((first_part, first), (part, module))) = differing.first() else {
        return Ok(());
    };
    let more = match differing.len() {
        1 => String::new(),
        all => format!("; {all} of {common} modules that they have in common differ"),
    };
    Err(Error::bad(
        part.path.display().to_string(),
        format!(
            "has factors of shapes {:?} and {:?} for `{}`, where {} has {:?} and {:?}{more}",
            module.down.shape,
            module.up.shape,
            module.place(),
            first_part.path.display(),
            first.down.shape,
            first.up.shape
        ),
        "Merge adapters that were trained on the same kind of model.",
    ))
}

fn join(found: &Common) -> ModuleFactors {
    let first = found[0].1;
    let scales: Vec<f64> = found.iter().map(|(part, m)| m.scale() * part.scale).collect();
    let rank: usize = found.iter().map(|(_, m)| m.rank()).sum();
    // An alpha of 0 means "as the rank" to some readers, and none expects a negative one.
    let alike = scales[0] > 0.0 && scales.iter().all(|s| *s == scales[0]);
    let alpha = match found {
        _ if !alike => rank as f64,
        [(part, only)] => only.alpha * part.scale,
        _ => scales[0] * rank as f64,
    };
    let factor = |scale: f64| if alike { 1.0 } else { scale };
    let rows = (0..first.outputs()).flat_map(|row| {
        found.iter().zip(&scales).flat_map(move |((_, m), scale)| {
            let values = &m.up.values[row * m.rank()..][..m.rank()];
            values
                .iter()
                .map(move |v| (f64::from(*v) * factor(*scale)) as f32)
        })
    });
    let up = tensor(
        rank,
        1,
        &first.up,
        rows.collect(),
        found.iter().map(|(_, m)| &m.up),
    );
    let stacked = found.iter().flat_map(|(_, m)| m.down.values.iter().copied());
    let down = tensor(
        rank,
        0,
        &first.down,
        stacked.collect(),
        found.iter().map(|(_, m)| &m.down),
    );
    let dotted = found.iter().map(|(_, m)| &m.module);
    let named = dotted.clone().find(|name| matches!(name, ModuleName::Path(_)));
    ModuleFactors {
        component: first.component,
        module: named.unwrap_or(&first.module).clone(),
        down,
        up,
        alpha,
    }
}

/// A tensor as `first`, but of this rank along `axis`, in the type that all of `parts` have, else in 32 bits.
fn tensor<'a>(
    rank: usize,
    axis: usize,
    first: &ReadTensor,
    values: Vec<f32>,
    mut parts: impl Iterator<Item = &'a ReadTensor>,
) -> ReadTensor {
    let precision = match parts.all(|part| part.precision == first.precision) {
        true => first.precision,
        false => Precision::Fp32,
    };
    let mut shape = first.shape.clone();
    shape[axis] = rank;
    ReadTensor {
        shape,
        values: values.into_iter().map(|v| precision.rounded(v)).collect(),
        precision,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_folder::Component;

    fn part(name: &str, rank: usize, first: f32, alpha: f64, scale: f64) -> Part {
        let tensor = |shape: &[usize], first: f32| ReadTensor {
            shape: shape.to_vec(),
            values: (0..shape.iter().product()).map(|i| first + i as f32).collect(),
            precision: Precision::Fp16,
        };
        let module = ModuleFactors {
            component: Component::Unet,
            module: ModuleName::Path("m".into()),
            down: tensor(&[rank, 2], first),
            up: tensor(&[3, rank], -first),
            alpha,
        };
        Part {
            path: name.into(),
            lora: Lora {
                modules: vec![module],
                metadata: BTreeMap::new(),
            },
            scale,
        }
    }

    #[test]
    fn factors_lie_side_by_side_with_their_scales() {
        let both = combine(&[part("a", 1, 1.0, 2.0, 0.5), part("b", 2, 10.0, 1.0, -4.0)]).unwrap();
        let m = &both.modules[0];
        assert_eq!((m.rank(), m.alpha, m.down.precision), (3, 3.0, Precision::Fp16));
        assert_eq!(m.down.values, [1.0, 2.0, 10.0, 11.0, 12.0, 13.0]);
        // Of a the scale is 2 · 0.5, of b 1/2 · -4.
        let (a, b) = (
            [-1.0, 0.0, 1.0],
            [-10.0, -9.0, -8.0, -7.0, -6.0, -5.0].map(|v: f32| -2.0 * v),
        );
        assert_eq!(
            m.up.values,
            [a[0], b[0], b[1], a[1], b[2], b[3], a[2], b[4], b[5]]
        );
        assert_eq!(both.metadata["ortdpo.merged"], "a:0.5 b:-4");
    }

    #[test]
    fn equal_scales_go_into_alpha() {
        let parts = [part("a", 1, 1.0, 2.0, 0.5), part("b", 2, 10.0, 4.0, 0.5)];
        let m = &combine(&parts).unwrap().modules[0];
        assert_eq!((m.alpha, &m.up.values[..3]), (3.0, &[-1.0, -10.0, -9.0][..]));
        let parts = [part("b", 2, 10.0, 0.7, 0.5)];
        let (m, b) = (&combine(&parts).unwrap().modules[0], &parts[0].lora.modules[0]);
        assert_eq!((m.alpha, &m.up), (0.35, &b.up));
        // Nothing must not become "alpha as the rank".
        let m = &combine(&[part("b", 2, 10.0, 2.0, 0.0)]).unwrap().modules[0];
        assert!(m.alpha == 2.0 && m.up.values.iter().all(|v| *v == 0.0));
    }

    #[test]
    fn adapters_of_different_models_are_refused() {
        let mut other = part("b", 2, 10.0, 1.0, 1.0);
        other.lora.modules[0].up.shape = vec![1, 6];
        let error = combine(&[part("a", 1, 1.0, 1.0, 1.0), other]).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("`unet.m`, where a has [1, 2] and [3, 1]"),
            "{error}"
        );
    }
}
