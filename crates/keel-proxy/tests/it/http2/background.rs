//! Where clients and endpoints of HTTP/2 live while a test goes on.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// A whole test takes at most this long.
const MOST: Duration = Duration::from_secs(60);

/// Two threads for all tests of the process: what they drive goes on while a test waits for the proxy.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
});

/// Runs `test` on this thread; it may block.
pub fn wait<T>(test: impl Future<Output = T>) -> T {
    let in_time = RUNTIME.block_on(async { tokio::time::timeout(MOST, test).await });
    in_time.expect("the test ends in time")
}

/// Runs `task` behind the test's back.
pub fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    RUNTIME.spawn(task)
}
