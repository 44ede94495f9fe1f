//! Arguments that fix the open dimensions of a model.

use std::path::Path;

use clap::Args;
use ortdpo::onnx::{Dims, Graph, Model, SpecializeOptions, specialize};
use ortdpo::{Error, Result};

/// Dimensions given on the command line.
#[derive(Args)]
pub struct DimArgs {
    /// Fix a named dimension of the inputs (repeatable)
    #[arg(long, value_name = "NAME=N", value_parser = named)]
    dim: Vec<(String, usize)>,
    /// Fix all dimensions of an input, for dimensions without a name (repeatable)
    #[arg(long, value_name = "INPUT=N,N,…", value_parser = shape)]
    shape: Vec<(String, Vec<usize>)>,
}

impl DimArgs {
    /// Reads `model` and makes it static with these dimensions.
    pub fn load(&self, model: &Path, split_shared: bool) -> Result<Graph> {
        let dims = self.dims()?;
        specialize(&Model::read(model)?, &SpecializeOptions { dims, split_shared })
    }

    fn dims(&self) -> Result<Dims> {
        let mut dims = Dims::default();
        for (name, n) in &self.dim {
            if dims
                .named
                .insert(name.clone(), *n)
                .is_some_and(|before| before != *n)
            {
                return Err(given_twice("--dim", name));
            }
        }
        for (name, shape) in &self.shape {
            let before = dims.shapes.insert(name.clone(), shape.clone());
            if before.is_some_and(|before| before != *shape) {
                return Err(given_twice("--shape", name));
            }
        }
        Ok(dims)
    }
}

fn given_twice(option: &str, name: &str) -> Error {
    Error::bad(
        format!("{option} {name}"),
        "is given twice with different numbers",
        "Give it once.",
    )
}

/// `NAME=N`.
fn named(text: &str) -> Result<(String, usize), String> {
    let (name, n) = text.rsplit_once('=').ok_or("write NAME=N, such as batch=2")?;
    Ok((name.to_owned(), number(n)?))
}

/// `INPUT=N,N,…`; `INPUT=` is a tensor without dimensions.
fn shape(text: &str) -> Result<(String, Vec<usize>), String> {
    let (name, dims) = text
        .rsplit_once('=')
        .ok_or("write INPUT=N,N,…, such as sample=2,4,16,16")?;
    let dims: Result<_, _> = dims.split(',').filter(|_| !dims.is_empty()).map(number).collect();
    Ok((name.to_owned(), dims?))
}

fn number(text: &str) -> Result<usize, String> {
    text.trim()
        .parse()
        .map_err(|_| format!("`{text}` is not a dimension"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_are_read() {
        assert_eq!(named("batch=2").unwrap(), ("batch".into(), 2));
        assert_eq!(named("a=b=3").unwrap(), ("a=b".into(), 3));
        assert_eq!(shape("x=2, 4").unwrap(), ("x".into(), vec![2, 4]));
        assert_eq!(shape("t=").unwrap(), ("t".into(), vec![]));
        assert!(named("batch").is_err() && named("batch=-1").is_err() && shape("x=2,,3").is_err());
    }
}
