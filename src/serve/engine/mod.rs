//! One thread that owns a model and answers many requests at once, token by token.
//!
//! Requests join and leave between two decoding steps: a step puts one token behind every running answer in one pass through the
//! weights. Prompts are processed in pieces, at most one between two steps, so that running answers go on. Keys and values are in pages;
//! a request gets those for its prompt and all the tokens it may have when it gets its place, so that no running answer ever fails for
//! memory. Requests that find no place or too few pages wait in the order they came, none overtakes another; when as many wait as may
//! wait, the next is refused.
//!
//! # What an answer depends on
//! Not on who else is served: pieces begin at multiples of [`EngineOptions::prefill_tokens`] of their own prompt, and a step's rows are
//! computed apart. With a compressed model on a CPU an answer is bit for bit the one that the same request gets alone. Where libtorch
//! multiplies (dense weights) or kernels are chosen by the number of rows (a GPU), a row's last bits may depend on how many rows there
//! are; then greedy answers are those alone but for places where two tokens are equally likely to within such bits. Sampling uses the
//! random numbers of the request's own seed.
//!
//! [`Engine`] is that thread; see its example.

mod answer;
mod figures;
mod job;
mod logprobs;
mod options;
mod paged_llama;
mod paged_model;
mod request;
mod scheduler;
mod shared;
mod stats;
#[cfg(test)]
mod tests;

pub use answer::{Answer, Event, TokenLogprob, TokenLogprobs, Usage};
pub use options::{EngineOptions, ModelInfo};
pub use request::{Refusal, Request};
pub use stats::{EngineState, EngineStats, Histogram, RequestCounts};

use std::sync::Arc;
use std::time::{Duration, Instant};

use tch::Device;

use self::job::Job;
use self::paged_llama::PagedLlama;
use self::paged_model::PagedModel;
use self::scheduler::Scheduler;
use self::shared::{EndOfThread, Shared};
use crate::cuda;
use crate::error::{Error, Result};
use crate::runtime::{rss_bytes, Continuation, Generator, Language, Prompt, PromptLimits};

/// A handle on the thread that owns a model and its key-value cache. Clones are handles on the same thread, which completes what it has
/// taken and ends when the last handle is dropped.
///
/// ```no_run
/// // Needs a model.
/// use std::time::Duration;
/// use codecllm::runtime::{GenerateOptions, Generator, LoadOptions, Prompt};
/// use codecllm::serve::engine::{Answer, Engine, EngineOptions, EngineState, Event, Refusal, Request};
/// let generator = Generator::open("model", &LoadOptions::default())?;
/// let engine = Engine::start(generator, EngineOptions { max_batch: 8, ..EngineOptions::default() })?;
/// let prompt = Prompt::Text("Once upon a time".to_owned());
/// assert!(engine.encode(&prompt)?.len() <= engine.model_info().max_prompt_tokens());
/// let request = Request { logprobs: Some(2), ..Request::new(prompt, GenerateOptions::default()) };
/// let mut answer: Answer = match engine.submit(request) {
///     Ok(answer) => answer,
///     Err(Refusal::QueueFull { .. }) => return Ok(()), // later
///     Err(refusal) => panic!("{refusal}"),
/// };
/// while let Some(event) = answer.next_blocking() { // or `next().await`
///     match event {
///         Event::Token { text, logprobs, .. } => print!("{text} ({:?}) ", logprobs.map(|of| of.chosen.logprob)),
///         Event::Ended { text, usage, .. } => println!("{text}\n{} tokens", usage.completion_tokens),
///         Event::Failed(error) => eprintln!("{error}"),
///         Event::Started { .. } => (),
///     }
/// }
/// let stats = engine.stats();
/// assert!(stats.state == EngineState::Running && stats.requests.failed == 0);
/// println!("{} s to the first token", stats.time_to_first_token.sum / stats.time_to_first_token.count as f64);
/// engine.begin_shut_down(Duration::from_secs(5)); // takes no more
/// engine.shut_down(Duration::from_secs(5)); // and waits for its end
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Engine {
    handle: Arc<Handle>,
}

/// What all clones of an engine share.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    setup: Setup,
    pages: usize,
    page_tokens: usize,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.begin_shut_down(None);
    }
}

/// What an engine knows beside its model.
#[derive(Debug)]
struct Setup {
    language: Arc<Language>,
    limits: PromptLimits,
    info: ModelInfo,
    prefill_tokens: usize,
    device: Device,
    weight_bytes: usize,
    cache_bytes: usize,
}

impl Engine {
    /// Starts the thread.
    ///
    /// # Errors
    /// `InvalidArgument` for options out of range, `OutOfMemory` if memory for the cache is short, with what would fit.
    pub fn start(generator: Generator, options: EngineOptions) -> Result<Self> {
        options.check()?;
        let language = Arc::clone(generator.language());
        let model = PagedLlama::new(generator.into_model(), &options)?;
        let setup = Setup {
            limits: PromptLimits::new(model.model().llama().config(), model.model().context()),
            info: model.info(&options, language.chat.is_some()),
            language,
            prefill_tokens: model.prefill_tokens(&options),
            device: model.model().var_store().device(),
            weight_bytes: model.model().weight_bytes(),
            cache_bytes: model.cache_bytes(),
        };
        Self::start_with(model, setup)
    }

    /// Starts the thread with whatever `model`.
    fn start_with<M>(model: M, setup: Setup) -> Result<Self>
    where
        M: PagedModel + Send + 'static,
        M::Sequence: Send,
    {
        let (engine, scheduler) = Self::assemble(model, setup);
        // Dropped last: when the handles hear of the end, the model's memory is free.
        let mut end = EndOfThread::new(Arc::clone(&engine.handle.shared));
        let spawned =
            std::thread::Builder::new().name("engine".to_owned()).spawn(move || end.is_now(scheduler.run()));
        spawned.map_err(|error| Error::io("thread \"engine\"", error))?;
        Ok(engine)
    }

    /// An engine, and what its thread runs.
    fn assemble<M: PagedModel>(model: M, setup: Setup) -> (Self, Scheduler<M>) {
        let (pages, page_tokens) = (model.pages(), model.page_tokens());
        let shared = Arc::new(Shared::new(setup.info.max_batch, pages));
        let language = Arc::clone(&setup.language);
        let (max_batch, prefill_tokens) = (setup.info.max_batch, setup.prefill_tokens);
        let scheduler = Scheduler::new(model, Arc::clone(&shared), language, max_batch, prefill_tokens);
        (Self { handle: Arc::new(Handle { shared, setup, pages, page_tokens }) }, scheduler)
    }

    /// Asks for an answer: returns at once, when no more is computed than the prompt's tokens.
    ///
    /// # Errors
    /// [`Refusal`]: `Invalid` for what [`Generator::generate`] refuses, too, and for a request that needs more pages than there are.
    pub fn submit(&self, request: Request) -> std::result::Result<Answer, Refusal> {
        let handle = &*self.handle;
        let (events, answer) = Answer::channel();
        let job = handle.job(request, events).map_err(|error| {
            let refusal = Refusal::Invalid(error);
            handle.shared.lock().count_refusal(&refusal);
            refusal
        })?;
        handle.shared.enqueue(job, handle.setup.info.max_queue)?;
        Ok(answer)
    }

    /// The token ids of `prompt`, special tokens included, on the caller's thread.
    ///
    /// # Errors
    /// As [`Generator::encode`].
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        self.handle.setup.language.encode(prompt)
    }

    /// Figures of now.
    pub fn stats(&self) -> EngineStats {
        let Handle { setup, pages, page_tokens, .. } = &*self.handle;
        // Files and the driver are asked before the lock, which the engine's thread and every request want.
        let (device_bytes, rss_bytes) = (occupied_bytes(setup.device), rss_bytes());
        let mut state = self.handle.shared.lock();
        let (waiting, engine) = (state.waiting.len(), state.engine);
        let figures = &mut state.figures;
        figures.peak_device_bytes = figures.peak_device_bytes.max(device_bytes);
        EngineStats {
            state: engine,
            running: figures.running,
            waiting,
            pages_free: figures.free_pages,
            pages: *pages,
            page_tokens: *page_tokens,
            context: setup.info.context,
            prompt_tokens: figures.prompt_tokens,
            completion_tokens: figures.completion_tokens,
            requests: figures.requests,
            prefill_pieces: figures.prefill_pieces,
            steps: figures.steps,
            last_step_rows: figures.last_step_rows,
            tokens_per_second: figures.rate.per_second(Instant::now()),
            time_to_first_token: figures.time_to_first_token.clone(),
            step_seconds: figures.step_seconds.clone(),
            weight_bytes: setup.weight_bytes,
            cache_bytes: setup.cache_bytes,
            rss_bytes,
            peak_device_bytes: figures.peak_device_bytes,
        }
    }

    /// Whether it answers: as the figures of [`Engine::stats`] have it, at once.
    pub fn state(&self) -> EngineState {
        self.handle.shared.lock().engine
    }

    /// What the model and this engine can do.
    pub fn model_info(&self) -> &ModelInfo {
        &self.handle.setup.info
    }

    /// Takes no more requests from here on, and returns at once. Those taken, running or waiting, are completed; what is not complete
    /// `within` that time is cut off with [`StopReason::Interrupted`](crate::runtime::StopReason::Interrupted), and the thread ends.
    pub fn begin_shut_down(&self, within: Duration) {
        self.handle.shared.begin_shut_down(Some(within));
    }

    /// As [`Engine::begin_shut_down`], and waits for the thread to end: `within` and one step at most. It blocks; an async caller wants
    /// `tokio::task::spawn_blocking`.
    pub fn shut_down(&self, within: Duration) {
        self.begin_shut_down(within);
        self.handle.shared.wait_for_end();
    }
}

impl Handle {
    /// A request with an empty answer, once it is known that it can be answered.
    fn job(&self, request: Request, events: tokio::sync::mpsc::UnboundedSender<Event>) -> Result<Job> {
        let Request { prompt, options, logprobs, deadline } = request;
        let setup = &self.setup;
        let arrived = Instant::now();
        let ids = setup.language.encode(&prompt)?;
        setup.limits.check("prompt", &ids)?;
        let most_tokens = ids.len().saturating_add(options.max_new_tokens).min(setup.info.context);
        self.check_pages(ids.len(), most_tokens)?;
        let tokenizer = &setup.language.tokenizer;
        let continuation = Continuation::after(tokenizer, &ids, &options, options.sampling.seed)?;
        let likeliest_only = options.sampling.is_greedy() && logprobs.is_none();
        Ok(Job { ids, continuation, likeliest_only, logprobs, most_tokens, deadline, arrived, events })
    }

    /// An error if `most_tokens` tokens can never have pages, `prompt_tokens` of them of the prompt.
    fn check_pages(&self, prompt_tokens: usize, most_tokens: usize) -> Result<()> {
        let room = self.pages * self.page_tokens;
        if most_tokens <= room {
            return Ok(());
        }
        let cure = match room.checked_sub(prompt_tokens) {
            None | Some(0) => "shorten the prompt".to_owned(),
            Some(most) => format!("ask for {most} new tokens or fewer, shorten the prompt"),
        };
        let message = format!(
            "needs a cache of {most_tokens} tokens ({prompt_tokens} of the prompt), wanted at most {room}; {cure}, or give \
             the engine a larger cache (--cache-tokens)"
        );
        Err(Error::invalid("request", message))
    }
}

/// What is occupied of a GPU's memory, bytes.
fn occupied_bytes(device: Device) -> Option<u64> {
    let Device::Cuda(ordinal) = device else { return None };
    let (free, total) = cuda::device(ordinal).and_then(cuda::Device::free_and_total_bytes).ok()?;
    Some(total.saturating_sub(free) as u64)
}
