//! Which keys a query does not see, and the softmax over those that it does.

use burn::tensor::activation::{quiet_softmax, softmax};
use burn::tensor::{Bool, DType, Device, Tensor};

/// The masks of one call; a key is hidden from a query if any of them is true (true = hidden, as in Burn).
#[derive(Debug, Default)]
pub(super) struct Masks {
    /// Each broadcasts to `[batch, n_heads, seq_q, seq_k]`.
    masks: Vec<Tensor<4, Bool>>,
    /// Whether a query may be left without a key. Causality and a window cannot: every token sees itself.
    may_hide_all: bool,
}

impl Masks {
    /// Hides the keys behind each query, where query `i` stands at position `start + i` of `seq_k`.
    pub(super) fn causal(mut self, start: usize, [seq_q, seq_k]: [usize; 2], device: &Device) -> Self {
        // A single new token is the last one and sees everything.
        if seq_q > 1 {
            let mask = Tensor::<2, Bool>::tril_mask([seq_q, seq_k], start as i64, device);
            self.masks.push(mask.reshape([1, 1, seq_q, seq_k]));
        }
        self
    }

    /// Hides the keys that lie `window` or more positions before each query, where query `i` stands at position
    /// `start + i` of `seq_k`.
    pub(super) fn window(mut self, window: usize, start: usize, [seq_q, seq_k]: [usize; 2], device: &Device) -> Self {
        // The last query is the first to lose a key.
        if start + seq_q > window {
            let mask = Tensor::<2, Bool>::triu_mask([seq_q, seq_k], start as i64 - window as i64 + 1, device);
            self.masks.push(mask.reshape([1, 1, seq_q, seq_k]));
        }
        self
    }

    /// Hides keys from every query; `mask` is `[batch, seq_k]`.
    pub(super) fn padding(mut self, mask: Option<Tensor<2, Bool>>) -> Self {
        if let Some(mask) = mask {
            let [batch, seq_k] = mask.dims();
            self.masks.push(mask.reshape([batch, 1, 1, seq_k]));
            self.may_hide_all = true;
        }
        self
    }

    /// Hides keys from single queries; `mask` is `[batch, seq_q, seq_k]`.
    pub(super) fn attention(mut self, mask: Option<Tensor<3, Bool>>) -> Self {
        if let Some(mask) = mask {
            let [batch, seq_q, seq_k] = mask.dims();
            self.masks.push(mask.reshape([batch, 1, seq_q, seq_k]));
            self.may_hide_all = true;
        }
        self
    }

    /// The softmax of `scores` over the keys that are not hidden; both are `[batch, n_heads, seq_q, seq_k]`.
    ///
    /// Hidden keys have weight 0, and a query with no key left has a row of zeros. Narrow types are widened to `f32` on
    /// the way, as Hugging Face's models do: the sum of a long row does not fit 11 bits.
    pub(super) fn softmax(self, scores: Tensor<4>, quiet: bool) -> Tensor<4> {
        let dtype = scores.dtype();
        let wide = match dtype {
            DType::F64 => scores,
            _ => scores.cast(DType::F32),
        };
        // The least finite number and not −∞: a row of −∞ minus its maximum is not a number.
        let filled = self.hide(wide, f32::MIN);
        let weights = if quiet { quiet_softmax(filled, 3) } else { softmax(filled, 3) };
        let weights = if self.may_hide_all { self.hide(weights, 0.0) } else { weights };
        weights.cast(dtype)
    }

    /// Puts `value` wherever a mask is true.
    fn hide(&self, tensor: Tensor<4>, value: f32) -> Tensor<4> {
        self.masks.iter().fold(tensor, |tensor, mask| tensor.mask_fill(mask.clone(), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    fn weights(masks: Masks, scores: Tensor<4>, quiet: bool) -> Vec<f32> {
        masks.softmax(scores, quiet).into_data().convert::<f32>().try_to_vec().unwrap()
    }

    #[test]
    fn causal_masks_count_from_the_start() {
        let device = Device::flex();
        // Two queries at positions 1 and 2 of three keys, all scores alike.
        let masks = Masks::default().causal(1, [2, 3], &device);
        let found = weights(masks, Tensor::zeros([1, 1, 2, 3], &device), false);
        assert_eq!(found, [0.5, 0.5, 0.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0]);
    }

    #[test]
    fn a_window_moves_with_the_query() {
        let device = Device::flex();
        // Two queries at positions 2 and 3 of four keys, each of which sees its own and the one before.
        let masks = Masks::default().causal(2, [2, 4], &device).window(2, 2, [2, 4], &device);
        let found = weights(masks, Tensor::zeros([1, 1, 2, 4], &device), false);
        assert_eq!(found, [0.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.5, 0.5]);

        // As many keys as the window is wide: none is hidden, and no mask is made.
        assert!(Masks::default().window(4, 2, [2, 4], &device).masks.is_empty());
    }

    #[test]
    fn a_query_without_keys_has_weights_of_zero() {
        let device = Device::flex();
        for quiet in [false, true] {
            // Padding hides key 0 and causality key 1 from query 0: neither mask alone empties the row.
            let masks =
                Masks::default().causal(0, [2, 2], &device).padding(Some(Tensor::from_data([[true, false]], &device)));
            let found = weights(masks, Tensor::zeros([1, 1, 2, 2], &device), quiet);
            let seen = if quiet { 0.5 } else { 1.0 };
            assert_eq!(found, [0.0, 0.0, 0.0, seen], "quiet {quiet}");
        }
    }

    #[test]
    fn half_precision_scores_at_the_end_of_their_range_give_numbers() {
        let device = Device::flex();
        let data = TensorData::from([[[[65504.0f32, -65504.0, 65504.0, 0.0]]]]);
        for quiet in [false, true] {
            let scores = Tensor::<4>::from_data(data.clone(), (&device, DType::F16));
            let mask = Tensor::from_data([[false, false, false, true]], &device);
            let masks = Masks::default().padding(Some(mask));
            assert_eq!(weights(masks, scores, quiet), [0.5, 0.0, 0.5, 0.0], "quiet {quiet}");
        }
    }
}
