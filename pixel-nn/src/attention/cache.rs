//! The keys and values of the tokens seen so far.

use burn::tensor::{Bool, Tensor, assert_shape, s};

/// The keys and values of the tokens that a [`PIXELAttention`](super::PIXELAttention) has seen, for
/// [`forward_cached`](super::PIXELAttention::forward_cached): one cache for each layer and each batch of texts.
///
/// It holds `2 · batch · n_kv_heads · d_head` numbers a token, the keys already turned to their positions. When the
/// room is used up it moves to one twice as large, so that a token costs a write of itself and, on average, the copy of
/// one other; backends write in place where nothing else holds the tensor.
///
/// The numbers belong to the device, the type and the autodiff setting of the tensors that went in.
#[derive(Clone, Debug, Default)]
pub struct KeyValueCache {
    keys: Option<Tensor<4>>,
    values: Option<Tensor<4>>,
    /// `[batch, len]`, true = padding; `None` while no token was.
    padding: Option<Tensor<2, Bool>>,
    len: usize,
    /// Tokens that the first allocation holds at least.
    reserved: usize,
}

impl KeyValueCache {
    /// An empty cache that grows as tokens come.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty cache that holds `tokens` tokens before it moves for the first time.
    pub fn with_capacity(tokens: usize) -> Self {
        Self { reserved: tokens, ..Self::default() }
    }

    /// The number of tokens held: the position of the next one.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number of tokens that fit before the cache moves; 0 before the first token.
    pub fn capacity(&self) -> usize {
        self.keys.as_ref().map_or(0, |keys| keys.dims()[2])
    }

    /// Forgets every token and frees the memory; the next batch may have another size.
    pub fn clear(&mut self) {
        *self = Self::with_capacity(self.reserved);
    }

    /// Forgets the tokens from `len` on, for instance drafts that were not accepted; nothing happens if there are
    /// fewer.
    pub fn truncate(&mut self, len: usize) {
        if len == 0 {
            self.clear();
        } else if len < self.len {
            self.len = len;
            self.padding = self.padding.take().map(|padding| padding.slice(s![.., ..len]));
        }
    }

    /// Adds the keys and values of new tokens, each `[batch, n_kv_heads, seq, d_head]`, and returns those of all
    /// tokens, `[batch, n_kv_heads, len, d_head]`, with the padding mask `[batch, len]` if a token was ever padding.
    ///
    /// # Panics
    /// If a shape other than `seq` differs from that of the tokens held.
    pub(super) fn append(
        &mut self,
        keys: Tensor<4>,
        values: Tensor<4>,
        padding: Option<Tensor<2, Bool>>,
    ) -> (Tensor<4>, Tensor<4>, Option<Tensor<2, Bool>>) {
        if let Some(held) = &self.keys {
            let [batch, n_kv_heads, _, d_head] = held.dims();
            assert_shape!(keys, [batch, n_kv_heads, _, d_head]);
        }
        let padding = self.append_padding(padding, &keys);
        let [_, _, seq, _] = keys.dims();
        let keys = append(&mut self.keys, keys, self.len, self.reserved);
        let values = append(&mut self.values, values, self.len, self.reserved);
        self.len += seq;
        (keys, values, padding)
    }

    /// The padding mask with that of the tokens of `keys` added; tokens without a mask are not padding.
    fn append_padding(&mut self, new: Option<Tensor<2, Bool>>, keys: &Tensor<4>) -> Option<Tensor<2, Bool>> {
        if new.is_none() && self.padding.is_none() {
            return None;
        }
        let [batch, _, seq, _] = keys.dims();
        let seen = |len| Tensor::<2, Bool>::zeros([batch, len], &keys.device());
        let new = new.unwrap_or_else(|| seen(seq));
        let all = match self.padding.take() {
            Some(old) => Tensor::cat(vec![old, new], 1),
            None if self.len > 0 => Tensor::cat(vec![seen(self.len), new], 1),
            None => new,
        };
        self.padding = Some(all.clone());
        Some(all)
    }
}

/// Writes `new` behind the first `len` tokens of `room`, and returns all `len + seq` of them.
fn append(room: &mut Option<Tensor<4>>, new: Tensor<4>, len: usize, reserved: usize) -> Tensor<4> {
    let [batch, heads, seq, d_head] = new.dims();
    let end = len + seq;
    let empty = |tokens| Tensor::zeros([batch, heads, tokens, d_head], (&new.device(), new.dtype()));
    let held = match room.take() {
        None => empty(end.max(reserved)),
        Some(held) => match held.dims()[2] {
            capacity if capacity >= end => held,
            capacity => Tensor::cat(vec![held, empty(end.max(2 * capacity) - capacity)], 2),
        },
    };
    let held = held.slice_assign(s![.., .., len..end, ..], new);
    room.insert(held).clone().slice(s![.., .., ..end, ..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    /// One token of one text and one head, of size 1.
    fn token(value: f32) -> Tensor<4> {
        Tensor::from_data([[[[value]]]], &Device::flex())
    }

    fn push(cache: &mut KeyValueCache, value: f32) -> (Vec<f32>, Vec<f32>) {
        let (keys, values, _) = cache.append(token(value), token(-value), None);
        (keys.into_data().try_to_vec().unwrap(), values.into_data().try_to_vec().unwrap())
    }

    #[test]
    fn room_doubles_and_no_token_is_lost() {
        let mut cache = KeyValueCache::new();
        assert_eq!((cache.len(), cache.capacity(), cache.is_empty()), (0, 0, true));
        let mut expected = Vec::new();
        for (i, capacity) in [1, 2, 4, 4, 8].into_iter().enumerate() {
            expected.push(i as f32);
            let (keys, values) = push(&mut cache, i as f32);
            assert_eq!(keys, expected);
            assert_eq!(values, expected.iter().map(|v| -v).collect::<Vec<_>>());
            assert_eq!((cache.len(), cache.capacity()), (i + 1, capacity));
        }
    }

    #[test]
    fn reserved_room_is_used_before_the_cache_moves() {
        let mut cache = KeyValueCache::with_capacity(3);
        for capacity in [3, 3, 3, 6] {
            push(&mut cache, 1.0);
            assert_eq!(cache.capacity(), capacity);
        }
        cache.clear();
        assert_eq!((cache.len(), cache.capacity()), (0, 0));
        push(&mut cache, 1.0);
        assert_eq!(cache.capacity(), 3);
    }

    #[test]
    fn truncated_tokens_are_overwritten() {
        let mut cache = KeyValueCache::new();
        for value in [1.0, 2.0, 3.0] {
            push(&mut cache, value);
        }
        cache.truncate(7);
        assert_eq!(cache.len(), 3);
        cache.truncate(1);
        assert_eq!(push(&mut cache, 9.0).0, [1.0, 9.0]);
        cache.truncate(0);
        assert!(cache.is_empty());
    }

    #[test]
    fn keys_handed_out_keep_their_numbers() {
        let mut cache = KeyValueCache::with_capacity(4);
        push(&mut cache, 1.0);
        let (kept, _, _) = cache.append(token(2.0), token(0.0), None);
        cache.truncate(1);
        push(&mut cache, 3.0);
        assert_eq!(kept.into_data().try_to_vec::<f32>().unwrap(), [1.0, 2.0]);
    }

    #[test]
    fn padding_is_remembered_and_filled_in() {
        let mask = |padded: bool| Some(Tensor::<2, Bool>::from_data([[padded]], &Device::flex()));
        let mut cache = KeyValueCache::new();
        assert!(cache.append(token(0.0), token(0.0), None).2.is_none());
        cache.append(token(0.0), token(0.0), mask(true));
        let all = |found: Option<Tensor<2, Bool>>| found.unwrap().into_data().iter::<bool>().collect::<Vec<_>>();
        assert_eq!(all(cache.append(token(0.0), token(0.0), None).2), [false, true, false]);
        cache.truncate(2);
        assert_eq!(all(cache.append(token(0.0), token(0.0), mask(true)).2), [false, true, true]);
    }

    #[test]
    #[should_panic(expected = "axis 0 expected 1, got 2")]
    fn another_batch_size_is_refused() {
        let mut cache = KeyValueCache::new();
        push(&mut cache, 1.0);
        let two = Tensor::zeros([2, 1, 1, 1], &Device::flex());
        cache.append(two.clone(), two, None);
    }
}
