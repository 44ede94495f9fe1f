//! A denoiser's prediction without and with an adapter, by the `ort` crate alone.
//!
//! ```text
//! ortdpo adapter export-base models/tiny-sd tiny-adaptable --adapter runs/demo
//! ortdpo adapter convert runs/demo demo.onnx_adapter --to onnx
//! export ORT_DYLIB_PATH=.ort/libonnxruntime.so
//! cargo run --example onnx_adapter tiny-adaptable/unet/model.onnx demo.onnx_adapter
//! ```

use std::error::Error;

use ort::session::{Adapter, RunOptions, Session};
use ort::value::{DynValue, Outlet, Tensor, TensorElementType, ValueType};

/// Something for every input: named dimensions are 2 or, of the image, 16.
fn example(input: &Outlet) -> Result<DynValue, Box<dyn Error>> {
    let ValueType::Tensor {
        ty,
        shape,
        dimension_symbols,
    } = input.dtype()
    else {
        return Err("an input is no tensor".into());
    };
    let is_side = |name: &str| name.contains("height") || name.contains("width");
    let size = |(dim, name): (&i64, &String)| match usize::try_from(*dim) {
        Ok(fixed) => fixed,
        Err(_) if is_side(name) => 16,
        Err(_) => 2,
    };
    let shape: Vec<usize> = shape.iter().zip(dimension_symbols.iter()).map(size).collect();
    let count: usize = shape.iter().product();
    let values = (0..count).map(|i| (i as f32 * 0.7).sin());
    Ok(match ty {
        TensorElementType::Int64 => Tensor::from_array((shape, vec![500_i64; count]))?.into_dyn(),
        _ if input.name() == "timestep" => Tensor::from_array((shape, vec![500_f32; count]))?.into_dyn(),
        _ => Tensor::from_array((shape, values.collect::<Vec<f32>>()))?.into_dyn(),
    })
}

fn predict(session: &mut Session, options: &RunOptions) -> Result<Vec<f32>, Box<dyn Error>> {
    let mut inputs: Vec<(String, DynValue)> = Vec::new();
    for input in session.inputs() {
        inputs.push((input.name().to_owned(), example(input)?));
    }
    let outputs = session.run_with_options(inputs, options)?;
    let (_, values) = outputs[0].try_extract_tensor::<f32>()?;
    Ok(values.to_vec())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(model), Some(adapter)) = (arguments.next(), arguments.next()) else {
        return Err("give a model.onnx that `ortdpo adapter export-base` wrote, and an .onnx_adapter".into());
    };
    let environment = ort::init().with_telemetry(false).build()?;
    let mut session = Session::builder(&environment)?.commit_from_file(model)?;
    let adapter = Adapter::from_file(adapter, None)?;
    let mut with_adapter = RunOptions::new()?;
    with_adapter.add_adapter(&adapter)?;

    let without = predict(&mut session, &RunOptions::new()?)?;
    let with = predict(&mut session, &with_adapter)?;
    let change = without
        .iter()
        .zip(&with)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    println!("{} values, changed by up to {change}", with.len());
    Ok(())
}
