//! The keys and values of the tokens seen so far.

use burn::tensor::{Bool, Tensor, s};
use pixel_core::attention::{AttentionSpec, CacheFormat};
use pixel_core::backend::{AttentionCache, AttentionInputs, attend};

/// The keys and values of the tokens that a [`PIXELAttention`](super::PIXELAttention) has seen, for
/// [`forward_cached`](super::PIXELAttention::forward_cached): one cache for each layer and each batch of texts.
///
/// It holds `2 · batch · n_kv_heads · d_head` numbers a token, the keys already turned to their positions, each in 32
/// bits or in fewer, as its [`CacheFormat`] says. When the room is used up it moves to one twice as large, so that a
/// token costs a write of itself and, on average, the copy of one other; backends write in place where nothing else
/// holds the tensors.
///
/// The numbers belong to the device and the autodiff setting of the tensors that went in.
#[derive(Clone, Debug, Default)]
pub struct KeyValueCache {
    held: Option<AttentionCache>,
    /// `[batch, len]`, true = padding; `None` while no token was.
    padding: Option<Tensor<2, Bool>>,
    len: usize,
    /// Tokens that the first allocation holds at least.
    reserved: usize,
    format: CacheFormat,
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

    /// An empty cache that holds numbers as `format` says.
    pub fn with_format(self, format: CacheFormat) -> Self {
        Self { reserved: self.reserved, format, ..Self::default() }
    }

    /// How numbers are held.
    pub fn format(&self) -> CacheFormat {
        self.format
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
        self.held.as_ref().map_or(0, |held| held.room()[1])
    }

    /// Forgets every token and frees the memory; the next batch may have another size.
    pub fn clear(&mut self) {
        *self = Self::with_capacity(self.reserved).with_format(self.format);
    }

    /// Forgets the tokens from `len` on, for instance drafts that were not accepted, and keeps the memory; nothing
    /// happens if there are fewer.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.len = len;
            self.padding = self.padding.take().map(|padding| padding.slice(s![.., ..len]));
        }
    }

    /// Adds the new tokens of `qkv` `[batch, seq, (n_heads + 2 · n_kv_heads) · d_head]`, of which `padding` `[batch,
    /// seq]` may be true, and lets their queries attend to all: `[batch, seq, n_heads · d_head]`. `spec` has the format
    /// of the cache.
    ///
    /// # Panics
    /// If the batch differs from that of the tokens held, or the tokens held are those of another attention.
    pub(super) fn attend(
        &mut self,
        spec: &AttentionSpec,
        qkv: Tensor<3>,
        mut inputs: AttentionInputs,
        padding: Option<Tensor<2, Bool>>,
    ) -> Tensor<3> {
        let [batch, seq, _] = qkv.dims();
        let (device, end) = (qkv.device(), self.len + seq);
        let held = match self.held.take() {
            // Nothing is held that a batch of another size would have to agree with.
            Some(held) if self.len > 0 || held.room()[0] == batch => {
                let [texts, capacity] = held.room();
                assert_eq!(batch, texts, "texts of the new tokens (left) and of the cache (right)");
                let more = if capacity < end { end.max(2 * capacity) } else { capacity };
                held.with_capacity(spec, more, &device)
            }
            _ => AttentionCache::new(spec, batch, end.max(self.reserved), &device),
        };
        inputs.padding = self.append_padding(padding, &qkv);
        let (out, held) = attend(spec, qkv, inputs, held, self.len);
        self.held = Some(held);
        self.len = end;
        out
    }

    /// The padding mask with that of the tokens of `qkv` added; tokens without a mask are not padding.
    fn append_padding(&mut self, new: Option<Tensor<2, Bool>>, qkv: &Tensor<3>) -> Option<Tensor<2, Bool>> {
        if new.is_none() && self.padding.is_none() {
            return None;
        }
        let [batch, seq, _] = qkv.dims();
        let seen = |len| Tensor::<2, Bool>::zeros([batch, len], &qkv.device());
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

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    /// One head of eight values, whatever they are held as.
    fn spec(cache: &KeyValueCache) -> AttentionSpec {
        let format = cache.format();
        let (window, norm_epsilon) = (None, None);
        AttentionSpec {
            n_heads: 1,
            n_kv_heads: 1,
            d_head: 8,
            causal: true,
            window,
            quiet_softmax: false,
            norm_epsilon,
            format,
        }
    }

    /// Adds a token whose key and value are `value` and `-value`, and returns all keys and values, the first of eight.
    fn push_padded(cache: &mut KeyValueCache, value: f32, padding: Option<bool>) -> (Vec<f32>, Vec<f32>) {
        let device = Device::flex();
        let parts = [0.0, value, -value].map(|value| Tensor::<3>::full([1, 1, 8], value, &device));
        let padding = padding.map(|padded| Tensor::from_data([[padded]], &device));
        let spec = spec(cache);
        cache.attend(&spec, Tensor::cat(parts.to_vec(), 2), AttentionInputs::default(), padding);
        let (keys, values) = cache.held.as_ref().unwrap().dense(&spec, cache.len());
        let first = |heads: Tensor<4>| heads.slice(s![.., .., .., ..1]).into_data().try_to_vec().unwrap();
        (first(keys), first(values))
    }

    fn push(cache: &mut KeyValueCache, value: f32) -> (Vec<f32>, Vec<f32>) {
        push_padded(cache, value, None)
    }

    #[test]
    fn room_doubles_and_no_token_is_lost() {
        for format in [CacheFormat::F32, CacheFormat::Bits8, CacheFormat::Bits4] {
            let mut cache = KeyValueCache::new().with_format(format);
            assert_eq!((cache.len(), cache.capacity(), cache.is_empty()), (0, 0, true));
            let mut expected: Vec<f32> = Vec::new();
            for (i, capacity) in [1, 2, 4, 4, 8].into_iter().enumerate() {
                expected.push(i as f32);
                let (keys, values) = push(&mut cache, i as f32);
                // Equal values turn into few large ones, which are rounded to less than a hundredth.
                let near = |found: &f32, expected: f32| (found - expected).abs() <= 1e-2 * expected.abs() + 1e-6;
                assert!(keys.iter().zip(&expected).all(|(key, i)| near(key, *i)), "{format:?}: {keys:?}");
                assert!(values.iter().zip(&expected).all(|(value, i)| near(value, -i)), "{format:?}: {values:?}");
                assert_eq!((keys.len(), cache.len(), cache.capacity()), (i + 1, i + 1, capacity));
            }
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
        assert_eq!(cache.capacity(), 4);
        assert_eq!(push(&mut cache, 5.0).0, [5.0]);
    }

    #[test]
    fn an_emptied_cache_takes_a_batch_of_another_size() {
        let mut cache = KeyValueCache::new();
        push(&mut cache, 1.0);
        cache.truncate(0);
        let spec = spec(&cache);
        let out = cache.attend(&spec, Tensor::ones([2, 1, 24], &Device::flex()), AttentionInputs::default(), None);
        assert_eq!((out.dims(), cache.len()), ([2, 1, 8], 1));
    }

    #[test]
    fn a_copy_keeps_its_numbers() {
        let mut cache = KeyValueCache::with_capacity(4);
        push(&mut cache, 1.0);
        push(&mut cache, 2.0);
        let mut kept = cache.clone();
        cache.truncate(1);
        push(&mut cache, 3.0);
        assert_eq!(push(&mut kept, 4.0).0, [1.0, 2.0, 4.0]);
    }

    #[test]
    fn padding_is_remembered_and_filled_in() {
        let mut cache = KeyValueCache::new();
        let all = |cache: &KeyValueCache| {
            cache.padding.as_ref().map(|found| found.clone().into_data().iter::<bool>().collect::<Vec<_>>())
        };
        push(&mut cache, 0.0);
        assert_eq!(all(&cache), None);
        push_padded(&mut cache, 0.0, Some(true));
        push(&mut cache, 0.0);
        assert_eq!(all(&cache).unwrap(), [false, true, false]);
        cache.truncate(2);
        push_padded(&mut cache, 0.0, Some(true));
        assert_eq!(all(&cache).unwrap(), [false, true, true]);
    }

    #[test]
    #[should_panic(expected = "texts of the new tokens")]
    fn another_batch_size_is_refused() {
        let mut cache = KeyValueCache::new();
        push(&mut cache, 1.0);
        let spec = spec(&cache);
        cache.attend(&spec, Tensor::zeros([2, 1, 24], &Device::flex()), AttentionInputs::default(), None);
    }
}
