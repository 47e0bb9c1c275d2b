//! The mesh that runs: each process is ready, and the gateway answers over mutual TLS.

use std::{net::SocketAddr, path::Path, time::Duration};

use tokio::time::{Instant, timeout};
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::finding::Finding;
use crate::{
    advice::Advice,
    call::{
        Target,
        client::{self, Life},
    },
    home::Home,
    mesh::{Member, Record},
};

/// How long an answer may take.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// How a process answers on its health port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    Serving,
    /// It loads or drains.
    NotServing,
    Unreachable(String),
}

/// What is to be said about a process.
pub(crate) fn judge_process(member: &Member, readiness: &Readiness) -> Finding {
    const CHECK: &str = "process";
    let log = format!("its log says why: {}", member.log.display());
    let pid = member.pid.map_or_else(|| "down".to_owned(), |pid| format!("process {pid}"));
    match readiness {
        Readiness::Serving => Finding::ok(CHECK, &member.name, format!("{pid}, ready")),
        Readiness::NotServing => {
            let what = format!("{pid}, answers and is not ready: it loads its model, or drains");
            Finding::warn(CHECK, &member.name, what).help(format!("wait a moment; {log}"))
        }
        Readiness::Unreachable(why) => {
            Finding::fail(CHECK, &member.name, format!("{pid}, its health port does not answer: {why}")).help(log)
        }
    }
}

/// What is to be said about a call through the gateway.
pub(crate) fn judge_gateway(address: &str, answer: &anyhow::Result<Duration>) -> Finding {
    const CHECK: &str = "gateway";
    match answer {
        Ok(time) => {
            let what = format!("answers over mutual TLS after {:.0} ms", time.as_secs_f64() * 1e3);
            Finding::ok(CHECK, address, what)
        }
        Err(error) => {
            let causes: Vec<_> = error.chain().map(ToString::to_string).collect();
            let help = error.downcast_ref::<Advice>().map(|advice| advice.help().to_owned());
            let help = help.unwrap_or_else(|| "the gateway's log is in the data directory, run/logs".to_owned());
            Finding::fail(CHECK, address, causes.join(": ")).help(help)
        }
    }
}

/// Asks every process of the mesh, and the gateway as a client does.
pub(crate) async fn check(record: &Record, target: &Target, home: &Home) -> Vec<Finding> {
    let mut findings = Vec::new();
    for member in &record.processes {
        findings.push(judge_process(member, &readiness(member.addresses.health).await));
    }
    findings.push(check_gateway(target, home).await);
    findings
}

/// Asks the gateway as a client does.
pub(crate) async fn check_gateway(target: &Target, home: &Home) -> Finding {
    let address = client::address(target, home);
    let answer = ask_gateway(target, home, &address).await;
    judge_gateway(&address, &answer)
}

async fn ask_gateway(target: &Target, home: &Home, address: &str) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let connection = client::open(target, home, address, WAIT_MAX, Life::OneConnection).await?;
    let mut request = tonic::Request::new(HealthCheckRequest { service: String::new() });
    request.set_timeout(WAIT_MAX);
    let answer = HealthClient::new(connection.channel.clone()).check(request).await;
    match answer {
        Ok(_) => Ok(began.elapsed()),
        // It is the gateway that says so.
        Err(status) if status.code() == Code::NotFound => Ok(began.elapsed()),
        Err(status) => Err(connection.explain(&status).await),
    }
}

async fn readiness(health: SocketAddr) -> Readiness {
    let ask = async {
        let channel = Endpoint::try_from(format!("http://{health}"))?.connect().await?;
        let request = HealthCheckRequest { service: String::new() };
        anyhow::Ok(HealthClient::new(channel).check(request).await?.into_inner().status())
    };
    match timeout(WAIT_MAX, ask).await {
        Ok(Ok(ServingStatus::Serving)) => Readiness::Serving,
        Ok(Ok(_)) => Readiness::NotServing,
        Ok(Err(error)) => Readiness::Unreachable(error.root_cause().to_string()),
        Err(_) => Readiness::Unreachable(format!("no answer within {}", humantime::format_duration(WAIT_MAX))),
    }
}

/// Whether the process that started the mesh is still there: a mesh that was killed leaves its record.
pub(crate) fn is_alive(pid: u32) -> bool {
    // Where there is no /proc, the ports tell.
    !Path::new("/proc/self").exists() || Path::new(&format!("/proc/{pid}")).exists()
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use chassis::server::Addresses;

    use super::*;
    use crate::{doctor::finding::Mark, role::Role};

    fn member() -> Member {
        let any = SocketAddr::from(([127, 0, 0, 1], 1));
        let addresses = Addresses { grpc: any, admin: any, health: any };
        Member { name: "vision-0".into(), role: Role::Vision, pid: Some(9), addresses, log: "/l/vision-0.log".into() }
    }

    #[test]
    fn a_process_that_is_not_ready_is_told_with_its_log() {
        assert_eq!(judge_process(&member(), &Readiness::Serving).mark, Mark::Ok);
        let loading = judge_process(&member(), &Readiness::NotServing);
        assert_eq!(loading.mark, Mark::Warn);
        let gone = judge_process(&member(), &Readiness::Unreachable("connection refused".into()));
        assert_eq!(gone.mark, Mark::Fail);
        assert!(gone.what.contains("connection refused") && gone.help.unwrap().contains("/l/vision-0.log"));
    }

    #[tokio::test]
    async fn nobody_there_is_unreachable() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(readiness(address).await, Readiness::Unreachable(_)));
    }

    #[test]
    fn why_the_gateway_does_not_answer_is_told_with_what_to_do() {
        let error = Err::<Duration, _>(anyhow::anyhow!("refused")).context(Advice::new("no mesh answers", "start it"));
        let finding = judge_gateway("a:1", &error);
        assert_eq!((finding.what.as_str(), finding.help.as_deref()), ("no mesh answers: refused", Some("start it")));
        assert_eq!(judge_gateway("a:1", &Ok(Duration::from_millis(3))).mark, Mark::Ok);
    }
}
