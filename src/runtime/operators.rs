//! Operators of ortdpo's own in ONNX Runtime's sessions on the CPU: the domain [`ORTDPO`], computed by [`crate::kernels`] on the
//! session's own threads.

use std::sync::{Mutex, PoisonError};

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorDomain};
use ort::operator::{OperatorInput, OperatorOutput};
use ort::session::builder::SessionBuilder;
use ort::value::{TensorElementType, ValueRef};

use crate::kernels::{ATTENTION_GRADIENT, ORTDPO};
use crate::kernels::{AttentionShape, Gradients, Operands, attention_gradients};

/// Lets graphs of the session use these operators.
pub(super) fn add_to(builder: SessionBuilder) -> ort::Result<SessionBuilder> {
    Ok(builder.with_operators(OperatorDomain::new(ORTDPO)?.add(AttentionGradient)?)?)
}

/// Makes a session with `commit`, alone until one was made.
///
/// The first session with these operators puts their domain into a table of the whole process. ONNX Runtime looks whether it is
/// there and adds it without a lock around both: of two first sessions at once, one fails.
pub(super) fn first_alone<T>(commit: impl FnOnce() -> ort::Result<T>) -> ort::Result<T> {
    static IS_MADE: Mutex<bool> = Mutex::new(false);
    let mut is_made = IS_MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if *is_made {
        drop(is_made);
        return commit();
    }
    let made = commit();
    *is_made = made.is_ok();
    made
}

/// Q, K, V, O and the gradient of O, laid out as for `MultiHeadAttention` → gradients of Q, K and V.
struct AttentionGradient;

struct AttentionGradientKernel {
    heads: usize,
    scale: f32,
}

impl Operator for AttentionGradient {
    type Kernel<'attr> = AttentionGradientKernel;

    fn name(&self) -> &str {
        ATTENTION_GRADIENT
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [const { OperatorInput::required(TensorElementType::Float32) }; 5]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [const { OperatorOutput::required(TensorElementType::Float32) }; 3]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let missing = |name| ort::Error::new(format!("{ATTENTION_GRADIENT} without the attribute {name}"));
        let heads: i64 = context.get("num_heads").ok_or_else(|| missing("num_heads"))?;
        Ok(AttentionGradientKernel {
            heads: usize::try_from(heads).unwrap_or(1).max(1),
            scale: context.get("scale").ok_or_else(|| missing("scale"))?,
        })
    }
}

impl Kernel for AttentionGradientKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let given = (0..5)
            .map(|index| input(context, index))
            .collect::<ort::Result<Vec<_>>>()?;
        let tensors = given.iter().map(|value| value.try_extract_tensor::<f32>());
        let tensors = tensors.collect::<ort::Result<Vec<_>>>()?;
        let shapes: Vec<Vec<i64>> = tensors.iter().map(|(shape, _)| shape.to_vec()).collect();
        let shape = self.shape(&shapes)?;
        let mut made = Vec::with_capacity(3);
        for (index, shape) in shapes[..3].iter().enumerate() {
            let value = context.output(index, shape.clone())?;
            made.push(value.ok_or_else(|| ort::Error::new("an output that nobody wants"))?);
        }
        let [dq, dk, dv] = &mut made[..] else {
            unreachable!("three outputs were made");
        };
        let (_, dq) = dq.try_extract_tensor_mut::<f32>()?;
        let (_, dk) = dk.try_extract_tensor_mut::<f32>()?;
        let (_, dv) = dv.try_extract_tensor_mut::<f32>()?;
        let [q, k, v, o, d_o] = [0, 1, 2, 3, 4].map(|i| tensors[i].1);
        let mut done = Ok(());
        attention_gradients(
            shape,
            self.scale,
            Operands { q, k, v, o, d_o },
            Gradients { dq, dk, dv },
            |jobs, job| done = context.par_for(jobs, jobs, job),
        );
        done
    }
}

impl AttentionGradientKernel {
    fn shape(&self, shapes: &[Vec<i64>]) -> ort::Result<AttentionShape> {
        let sizes = |i: usize| -> Option<[usize; 3]> {
            let sizes: Vec<usize> = shapes[i]
                .iter()
                .filter_map(|d| usize::try_from(*d).ok())
                .collect();
            sizes.try_into().ok()
        };
        let all = || {
            let [q, k, v] = [sizes(0)?, sizes(1)?, sizes(2)?];
            let fits = k == [q[0], k[1], q[2]]
                && v[..2] == k[..2]
                && [3, 4].iter().all(|i| sizes(*i) == Some([q[0], q[1], v[2]]))
                && q[2].is_multiple_of(self.heads)
                && v[2].is_multiple_of(self.heads);
            fits.then(|| AttentionShape {
                batch: q[0],
                heads: self.heads,
                queries: q[1],
                keys: k[1],
                width: q[2] / self.heads,
                value_width: v[2] / self.heads,
            })
        };
        all().ok_or_else(|| ort::Error::new(format!("operands of shapes that do not fit: {shapes:?}")))
    }
}

fn input(context: &ComputeContext, index: usize) -> ort::Result<ValueRef<'_>> {
    let value = context.input(index)?;
    value.ok_or_else(|| ort::Error::new(format!("operand {index} was not given")))
}
