//! An entry's tensors as bytes: their number, then for each its rank, its dimensions and its values. All
//! numbers are 32-bit and little-endian.

use ndarray::{ArrayD, ArrayViewD, IxDyn};

pub(super) fn encode(tensors: &[ArrayViewD<f32>]) -> Vec<u8> {
    let values: usize = tensors.iter().map(|t| t.len() + t.ndim() + 1).sum();
    let mut bytes = Vec::with_capacity(4 * (values + 1));
    let mut put = |number: u32| bytes.extend_from_slice(&number.to_le_bytes());
    put(tensors.len() as u32);
    for tensor in tensors {
        put(tensor.ndim() as u32);
        tensor.shape().iter().for_each(|&dim| put(dim as u32));
        tensor.iter().for_each(|&value| put(value.to_bits()));
    }
    bytes
}

/// `None` if the bytes are no entry.
pub(super) fn decode(mut bytes: &[u8]) -> Option<Vec<ArrayD<f32>>> {
    let tensors = take(&mut bytes)?;
    (0..tensors)
        .map(|_| {
            let rank = take(&mut bytes)?;
            let shape: Vec<usize> = (0..rank).map(|_| take(&mut bytes)).collect::<Option<_>>()?;
            let len = shape.iter().try_fold(4usize, |len, &dim| len.checked_mul(dim))?;
            let (values, rest) = bytes.split_at_checked(len)?;
            bytes = rest;
            let (values, _) = values.as_chunks::<4>();
            let values = values.iter().map(|&v| f32::from_le_bytes(v)).collect();
            ArrayD::from_shape_vec(IxDyn(&shape), values).ok()
        })
        .collect()
}

fn take(bytes: &mut &[u8]) -> Option<usize> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*number) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_of_any_rank_come_back_and_short_bytes_do_not() {
        let tensors = [
            ArrayD::from_shape_fn(IxDyn(&[2, 3]), |i| i[0] as f32 - 0.5 * i[1] as f32),
            ArrayD::from_elem(IxDyn(&[]), f32::MIN_POSITIVE),
            ArrayD::zeros(IxDyn(&[0, 4])),
        ];
        let views: Vec<_> = tensors.iter().map(|t| t.view()).collect();
        let bytes = encode(&views);
        assert_eq!(decode(&bytes).unwrap(), tensors);
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_none(), "{len}");
        }
    }
}
