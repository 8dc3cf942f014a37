//! What is refused or warned of, with its place.

#![allow(clippy::unwrap_used, clippy::tests_outside_test_module, reason = "a test panics")]

use std::collections::BTreeSet;

use pillion_inject::{Kind, MAX_BYTES, RECORD, Settings, decode, find, inject, uninject};

/// A pod whose spec has these lines before its containers, and whose one container these.
fn pod(spec: &str, container: &str) -> String {
    let lines = |text: &str, indent: &str| -> String {
        text.lines().map(|line| format!("{indent}{line}\n")).collect()
    };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n{}  containers:\n  - name: app\n{}",
        lines(spec, "  "),
        lines(container, "    ")
    )
}

fn annotated(annotations: &str) -> String {
    let with = format!("metadata:\n  annotations: {annotations}\n");
    pod("", "image: a").replace("metadata:\n", &with)
}

/// Every kind that is found, and the text that each points at.
fn found(text: &str) -> Vec<(Kind, String)> {
    let diagnostics = match inject("f.yaml", text, &Settings::default()) {
        Ok(injected) => injected.warnings,
        Err(errors) => errors.as_slice().to_vec(),
    };
    let at = |d: &pillion_inject::Diagnostic| d.source.chars().skip(d.caret).collect();
    diagnostics.iter().map(|d| (d.kind, at(d))).collect()
}

/// For each kind that a manifest can have against it: a manifest, and where it points.
fn examples() -> Vec<(Kind, String, &'static str)> {
    let record = |json: &str| annotated(&format!("{{{RECORD}: '{json}'}}"));
    let probes = "livenessProbe: {httpGet: {port: 80}, exec: {command: [a]}}";
    let shared = "livenessProbe: &p {httpGet: {port: 80}}\nreadinessProbe: *p";
    let anchored = "livenessProbe: {httpGet: {port: &port 80}}\nenv: [{name: A, value: *port}]";
    let list = |config: &str| {
        format!("apiVersion: config.kubernetes.io/v1\nkind: ResourceList\n{config}\nitems: []\n")
    };
    let rest = vec![
        (Kind::TooLarge, " ".repeat(MAX_BYTES + 1), " "),
        (Kind::YamlSyntax, "a: 1\nb: {\n".to_owned(), ""),
        (Kind::YamlSyntax, "a: b: c\n".to_owned(), ": c"),
        (Kind::TooDeep, format!("a: {}", "[".repeat(220)), "["),
        (Kind::DuplicateKey, pod("nodeName: a\nnodeName: b", "image: a"), "nodeName: b"),
        (Kind::DuplicateKey, pod("", "image: a\nenv: [{name: a, name: b}]"), "name: b}]"),
        (Kind::DuplicateKey, "kind: A\nkind: Pod\n".to_owned(), "kind: Pod"),
        (
            Kind::DuplicateKey,
            "kind: List\napiVersion: v1\nitems: [{kind: ConfigMap, kind: Pod}]\n".to_owned(),
            "kind: Pod}]",
        ),
        (
            Kind::DuplicateKey,
            format!(
                "x: &x {{hostNetwork: true}}\n{}",
                pod("hostNetwork: false\n<<: *x", "image: a")
            ),
            "<<: *x",
        ),
        (Kind::YamlSyntax, pod("# y\u{2028}  hostNetwork: true", "image: a"), "\u{2028}  host"),
        (Kind::YamlSyntax, pod("!!binary aG9zdE5ldHdvcms=: true", "image: a"), "!!binary"),
        (Kind::YamlSyntax, pod("nodeName:\n\t\ta: b", "image: a"), ""),
        (
            Kind::ProxyId,
            pod("securityContext: {runAsUser: .1337e+4}", "image: a"),
            "runAsUser: .13",
        ),
        (Kind::WrongType, "kind: Pod\napiVersion: v1\nspec: []\n".to_owned(), "spec: []"),
        (Kind::WrongType, pod("initContainers: {a: b}", "image: a"), "initContainers: {a: b}"),
        (Kind::WrongType, "{kind: Pod, apiVersion: v1, spec: {}}".to_owned(), "spec: {}}"),
        (Kind::SharedNode, pod("", shared), "&p {httpGet: {port: 80}}"),
        (Kind::SharedNode, pod("", anchored), "&port 80}}"),
        (Kind::SharedNode, pod("volumes: &v []\nx: *v", "image: a"), "&v []"),
        (
            Kind::SharedNode,
            format!("x: &x {{livenessProbe: {{httpGet: {{port: 80}}}}}}\n{}", pod("", "<<: *x")),
            "*x",
        ),
        (
            Kind::Layout,
            "? kind\n: Pod\n? apiVersion\n: v1\n? spec\n: ? containers\n  : [{name: a}]\n"
                .to_owned(),
            "? containers",
        ),
        (Kind::HostNetwork, pod("hostNetwork: true", "image: a"), "hostNetwork: true"),
        (Kind::HostNetwork, pod("hostNetwork: yes", "image: a"), "hostNetwork: yes"),
        (Kind::HostNetwork, pod("hostNetwork: on", "image: a"), "hostNetwork: on"),
        (Kind::HostNetwork, pod("hostNetwork: y", "image: a"), "hostNetwork: y"),
        (Kind::HostNetwork, pod("hostNetwork: !!bool \"True\"", "image: a"), "hostNetwork: !!bool"),
        (Kind::HostNetwork, pod("hostNetwork: \"true\"", "image: a"), "hostNetwork: \"true\""),
        (Kind::Windows, pod("os: {name: windows}", "image: a"), "name: windows}"),
        (
            Kind::Windows,
            pod("nodeSelector:\n  kubernetes.io/os: windows", "image: a"),
            "kubernetes.io/os: windows",
        ),
        (Kind::ProxyId, pod("securityContext: {runAsUser: 1337}", "image: a"), "runAsUser: 1337}"),
        (Kind::ProxyId, pod("securityContext: {fsGroup: 0x539}", "image: a"), "fsGroup: 0x539}"),
        (
            Kind::ProxyId,
            pod("securityContext: {supplementalGroups: [1, 1337]}", "image: a"),
            "1337]}",
        ),
        (Kind::ProxyId, pod("", "securityContext: {runAsGroup: 1337}"), "runAsGroup: 1337}"),
        (
            Kind::ProxyId,
            pod("initContainers: [{name: i, securityContext: {runAsUser: 1337}}]", "image: a"),
            "runAsUser: 1337}}]",
        ),
        (Kind::PortClash, pod("", "ports: [{containerPort: 15006}]"), "containerPort: 15006}]"),
        (Kind::ReservedName, pod("initContainers: [{name: pillion-x}]", "image: a"), "pillion-x}]"),
        (
            Kind::ReservedName,
            pod("volumes:\n- name: pillion-policy\n  emptyDir: {}", "image: a"),
            "name: pillion-policy",
        ),
        (
            Kind::ReservedName,
            pod("", "volumeMounts: [{name: pillion-identity, mountPath: /a}]"),
            "{name: pillion-identity, mountPath: /a}]",
        ),
        (
            Kind::ProcessNamespace,
            pod("shareProcessNamespace: true", "securityContext: {privileged: true}"),
            "privileged: true}",
        ),
        (
            Kind::ProcessNamespace,
            pod("hostPID: true", "securityContext: {capabilities: {add: [SYS_PTRACE]}}"),
            "SYS_PTRACE]}}",
        ),
        (
            Kind::PodResources,
            pod(
                "resources: {requests: {memory: 100Mi}}",
                "image: a\nresources: {requests: {memory: 70Mi}}",
            ),
            "memory: 100Mi}}",
        ),
        (Kind::PodResources, pod("resources: {limits: {cpu: 9m}}", "image: a"), "cpu: 9m}}"),
        (
            Kind::BadValue,
            annotated("{pillion.dev/cpu-limit: 5m, pillion.dev/cpu-request: 5m}"),
            "spec:",
        ),
        (Kind::BadValue, annotated("{pillion.dev/memory-limit: 16Mi}"), "spec:"),
        (
            Kind::SharedKey,
            pod(
                "volumes: [{name: k, secret: {secretName: pillion-identity}}]",
                "volumeMounts: [{name: k, mountPath: /k}]",
            ),
            "{name: k, mountPath: /k}]",
        ),
        (
            Kind::SharedKey,
            pod(
                "volumes: [{name: k, projected: {sources: [{secret: {name: pillion-identity}}]}}]",
                "volumeMounts: [{name: k, mountPath: /k}]",
            ),
            "{name: k, mountPath: /k}]",
        ),
        (
            Kind::SharedKey,
            pod("", "envFrom: [{secretRef: {name: pillion-identity}}]"),
            "{secretRef: {name: pillion-identity}}]",
        ),
        (
            Kind::SharedKey,
            pod(
                "",
                "env: [{name: K, valueFrom: {secretKeyRef: {name: pillion-identity, key: tls.key}}}]",
            ),
            "{name: K, valueFrom",
        ),
        (
            Kind::ReservedName,
            "kind: StatefulSet\napiVersion: apps/v1\nspec:\n  volumeClaimTemplates:\n  - metadata: {name: \
             pillion-identity}\n  template: {spec: {containers: [{name: a, image: b}]}}\n"
                .to_owned(),
            "metadata: {name: pillion-identity}",
        ),
        (
            Kind::Windows,
            pod(
                "affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
                 {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/os, operator: In, \
                 values: [windows]}]}]}}}",
                "image: a",
            ),
            "{key: kubernetes.io/os",
        ),
        (
            Kind::Windows,
            pod("securityContext: {windowsOptions: {hostProcess: true}}", "image: a"),
            "hostProcess: true}}",
        ),
        (
            Kind::Probe,
            pod("", "livenessProbe: {httpGet: null, tcpSocket: {port: 80}}"),
            "httpGet: null, tcp",
        ),
        (Kind::Probe, pod("", "livenessProbe: {tcpSocket: {port: '0x50'}}"), "port: '0x50'}}"),
        (Kind::ContainerName, pod("initContainers: [{name: app}]", "image: a"), "app"),
        (Kind::ContainerName, pod("initContainers: [{image: b}]", "image: a"), "{image: b}]"),
        (Kind::Probe, pod("", probes), "httpGet: {port: 80}, exec: {command: [a]}}"),
        (Kind::Probe, pod("", "livenessProbe: {tcpSocket: {port: web}}"), "port: web}}"),
        (Kind::Probe, pod("", "livenessProbe: {tcpSocket: {port: 70000}}"), "port: 70000}}"),
        (Kind::Probe, pod("", "livenessProbe: {grpc: {service: a}}"), "grpc: {service: a}}"),
        (Kind::Probe, pod("", "livenessProbe: {httpGet: {port: 1, scheme: h2}}"), "scheme: h2}}"),
        (
            Kind::Probe,
            pod("", "livenessProbe: {timeoutSeconds: x, grpc: {port: 1}}"),
            "timeoutSeconds: x, grpc: {port: 1}}",
        ),
        (Kind::Probe, pod("", "livenessProbe: {tcpSocket: {port: 15021}}"), "port: 15021}}"),
        (Kind::Probe, pod("", "livenessProbe: {httpGet: {port: 80, path: //a}}"), "path: //a}}"),
        (
            Kind::Probe,
            pod("", "livenessProbe: {httpGet: {port: 80, httpHeaders: [{name: A B, value: x}]}}"),
            "name: A B, value: x}]}}",
        ),
        (
            Kind::Probe,
            pod(
                "",
                "livenessProbe: {httpGet: {port: 80, httpHeaders: [{name: A, value: \"x\\ny\"}]}}",
            ),
            "value: \"x\\ny\"}]}}",
        ),
        (
            Kind::Probe,
            pod("", "livenessProbe: {grpc: {port: 80}, timeoutSeconds: 86401}"),
            "timeoutSeconds: 86401}",
        ),
        (Kind::ContainerName, pod("initContainers: [{name: Web}]", "image: a"), "Web}]"),
        (
            Kind::UnknownAnnotation,
            annotated("{pillion.dev/log-level: debug}"),
            "pillion.dev/log-level: debug}",
        ),
        (Kind::BadValue, annotated("{pillion.dev/inject: false}"), "pillion.dev/inject: false}"),
        (Kind::BadValue, annotated("{pillion.dev/inject: 'no'}"), "pillion.dev/inject: 'no'}"),
        (Kind::BadValue, annotated("{pillion.dev/identity: pod-certificate}"), "spec:"),
        (
            Kind::FunctionConfig,
            list("functionConfig: {kind: ConfigMap}"),
            "functionConfig: {kind: ConfigMap}",
        ),
        (
            Kind::FunctionConfig,
            list("functionConfig: {kind: PillionInject, spec: {logs: a}}"),
            "logs: a}}",
        ),
        (
            Kind::FunctionConfig,
            list("functionConfig: {kind: PillionInject, spec: {log: {a: b}}}"),
            "log: {a: b}}}",
        ),
        (
            Kind::BadValue,
            list("functionConfig: {kind: PillionInject, spec: {inboundPorts: [0]}}"),
            "inboundPorts: [0]}}",
        ),
        (Kind::BadRecord, record("{}"), "pillion.dev/injected: '{}'}"),
        (
            Kind::BadRecord,
            record("{\"version\": \"1\"}")
                + "    livenessProbe: {httpGet: {path: /app-health/app/livenessProbe, port: 15021}}\n",
            "httpGet: {path: /app-health/app/livenessProbe, port: 15021}}",
        ),
        (Kind::Bypass, pod("", "securityContext: {privileged: true}"), "privileged: true}"),
        (
            Kind::Bypass,
            pod("", "securityContext: {capabilities: {add: [CAP_NET_ADMIN]}}"),
            "CAP_NET_ADMIN]}}",
        ),
        (
            Kind::ProbeHost,
            pod("", "livenessProbe: {tcpSocket: {host: a.example, port: 80}}"),
            "tcpSocket: {host: a.example, port: 80}}",
        ),
        (
            Kind::NotInjected,
            "apiVersion: argoproj.io/v1alpha1\nkind: Rollout\nspec:\n  template:\n    spec:\n      \
             containers: [{name: a, image: b}]\n"
                .to_owned(),
            "containers: [{name: a",
        ),
        (
            Kind::NotInjected,
            "kind: JobSet\nspec:\n  replicatedJobs:\n  - template: {spec: {template: {spec: {containers: \
             [{image: b}]}}}}\n"
                .to_owned(),
            "containers: [{image: b}]",
        ),
        (
            Kind::NotInjected,
            "kind: List\nitems: [{kind: pod, apiVersion: V1, spec: {containers: [{image: b}]}}]\n"
                .to_owned(),
            "containers: [{image: b}]",
        ),
        (
            Kind::Hook,
            pod("", "lifecycle: {preStop: {httpGet: {path: /drain, port: 80}}}"),
            "httpGet: {path: /drain, port: 80}}}",
        ),
        (
            Kind::Hook,
            pod("", "lifecycle: {postStart: {tcpSocket: {port: 80}}}"),
            "tcpSocket: {port: 80}}}",
        ),
    ];
    let misplaced = "apiVersion: batch/v1\nkind: Job\nmetadata:\n  annotations:\n    \
                     pillion.dev/inject: \"false\"\nspec:\n  template:\n    spec:\n      \
                     containers: [{name: a, image: b}]\n";
    let outer = (Kind::MisplacedAnnotation, misplaced.to_owned(), "pillion.dev/inject: \"false\"");
    rest.into_iter().chain([outer]).collect()
}

#[test]
fn each_is_found_at_its_place_and_alone() {
    for (kind, text, place) in examples() {
        let found = found(&text);
        let shown = &text[..text.len().min(500)];
        assert_eq!(found.len(), 1, "{found:?}\n{shown}");
        assert_eq!(found[0].0, kind, "{shown}");
        assert!(found[0].1.starts_with(place) || kind == Kind::TooLarge, "{found:?}\n{shown}");
    }
}

#[test]
fn there_is_an_example_of_every_kind() {
    let seen: BTreeSet<&str> = examples().iter().map(|(kind, ..)| kind.slug()).collect();
    let all = Kind::ALL.iter().map(|kind| kind.slug());
    let missing: Vec<&str> = all.filter(|slug| !seen.contains(slug)).collect();
    // What this would need is a mistake of the program itself.
    assert_eq!(missing, ["not-reversible"]);
}

#[test]
fn every_message_is_a_cause_and_a_cure() {
    for (_, text, _) in examples() {
        let message = match inject("f", &text, &Settings::default()) {
            Ok(injected) => injected.warnings[0].message.clone(),
            Err(errors) => errors.as_slice()[0].message.clone(),
        };
        assert!(message.contains("; "), "{message}");
    }
}

#[test]
fn what_is_harmless_is_taken() {
    for text in [
        pod("hostNetwork: false\nhostPID: no", "image: a"),
        pod("os: {name: linux}", "ports: [{containerPort: 15001, protocol: UDP}]"),
        // The node's port, not one of the pod's.
        pod("", "ports: [{containerPort: 80, hostPort: 15021}]"),
        pod("shareProcessNamespace: true", "securityContext: {runAsUser: 0}"),
        pod("", "livenessProbe:\nreadinessProbe: {httpGet: null, exec: {command: [a]}}"),
        pod("", "securityContext: {capabilities: {add: [NET_BIND_SERVICE], drop: [NET_RAW]}}"),
        annotated("{pillion.dev/inject: \"false\"}")
            .replace("spec:\n", "spec:\n  hostNetwork: true\n"),
        annotated("{pillion.dev/log: info}"),
        pod("", "lifecycle: {postStart: {exec: {command: [a]}}, preStop: {sleep: {seconds: 1}}}"),
        pod(
            "affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
             {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/os, operator: In, \
             values: [windows]}]}, {matchExpressions: [{key: a, operator: Exists}]}]}}}",
            "image: a",
        ),
        // The pod's limit counts then.
        pod("resources: {limits: {cpu: 10m, memory: 32Mi}}", "image: a"),
        pod("volumes: [{name: k, secret: {secretName: other}}]", "volumeMounts: [{name: k, mountPath: /k}]"),
        // No pods come of these, or none that want a sidecar.
        "kind: ClusterPolicy\nspec: {rules: [{validate: {pattern: {spec: {containers: [{image: '*:*'}]}}}}]}\n"
            .to_owned(),
        "kind: Rollout\nspec:\n  template:\n    metadata: {annotations: {pillion.dev/inject: \"false\"}}\n    \
         spec: {containers: [{image: b}]}\n"
            .to_owned(),
        "kind: PodMetrics\ncontainers: [{name: a, usage: {cpu: 1}}]\n".to_owned(),
        // Another machine's, which our rules do not see.
        pod("", "lifecycle: {preStop: {httpGet: {host: drain.example, port: 80}}}"),
    ] {
        assert_eq!(found(&text), [], "{text}");
    }
}

#[test]
fn a_pod_that_is_left_alone_is_not_touched() {
    let mut off = Settings::default();
    off.set(find("inject").unwrap(), "false").unwrap();
    let plain = pod("hostNetwork: true", "image: a");
    assert_eq!(inject("f", &plain, &off).unwrap().text, plain);
    let unknown = plain.replace("kind: Pod", "kind: Rollout");
    assert_eq!(inject("f", &unknown, &off).unwrap().warnings, []);
    let wanted = annotated("{pillion.dev/inject: \"true\"}");
    assert!(inject("f", &wanted, &off).unwrap().text.contains("pillion-proxy"));
}

#[test]
fn a_port_in_quotes_is_decimal() {
    let text = pod(
        "",
        "livenessProbe: {tcpSocket: {port: '0100'}}\nreadinessProbe: {tcpSocket: {port: 0100}}",
    );
    let injected = inject("f", &text, &Settings::default()).unwrap().text;
    for part in [
        "livenessProbe\": {\"tcpSocket\": {\"port\": 100}",
        "readinessProbe\": {\"tcpSocket\": {\"port\": 64}",
    ] {
        assert!(injected.contains(part), "{injected}");
    }
}

#[test]
fn a_tab_that_is_none_of_yamls_is_named() {
    let errors = inject("f", "a:\n- name:\tb\n  image: c\n", &Settings::default()).unwrap_err();
    let error = &errors.as_slice()[0];
    assert!(error.message.contains("a tab"), "{error}");
    assert_eq!((error.line, error.column), (2, 8), "{error}");
}

#[test]
fn a_cpu_limit_is_for_both_containers() {
    let mut settings = Settings::default();
    settings.set(find("cpu-limit").unwrap(), "200m").unwrap();
    let injected = inject("f", &pod("", "image: a"), &settings).unwrap().text;
    assert_eq!(injected.matches("      limits:\n        cpu: 200m\n").count(), 2, "{injected}");
}

#[test]
fn a_hook_is_left_as_it_is() {
    let hook = "lifecycle:\n  preStop:\n    httpGet: # why\n      path: /drain\n      port: 80";
    let text = pod("", hook);
    let injected = inject("f", &text, &Settings::default()).unwrap();
    assert_eq!(injected.warnings.len(), 1);
    assert!(injected.text.contains("          path: /drain\n          port: 80\n"));
    assert!(!injected.text.contains("PILLION_APP_PROBES"), "{}", injected.text);
    // One that was redirected before is put back, and stays.
    let text = pod("", "lifecycle:\n  preStop:\n    httpGet: {path: /drain, port: 80}");
    let place = "httpGet: {path: /app-health/app/preStop, port: 15021}";
    let was = "httpGet: {path: /drain, port: 80}";
    let record = format!(
        "{{\"version\": \"0.1.0\", \"probes\": {{\"/app-health/app/preStop\": \
         {{\"text\": \"{was}\", \"column\": 8}}}}}}"
    );
    let before = text.replace(was, place).replace(
        "  name: web\n",
        &format!("  name: web\n  annotations:\n    {RECORD}: '{record}'\n"),
    );
    assert_eq!(uninject("f", &before).unwrap(), text);
}

#[test]
fn too_many_probes_or_too_long_ones_are_refused_at_the_one_that_is_too_much() {
    let containers = |count: usize, probe: &dyn Fn(usize) -> String| -> String {
        let one = |n| format!("  - name: c{n}\n    livenessProbe: {}\n", probe(n));
        (0..count).map(one).collect()
    };
    let text = |containers: &str| pod("", "image: a") + containers;
    let tcp = |_| "{tcpSocket: {port: 80}}".to_owned();
    let most = text(&containers(64, &tcp));
    assert_eq!(found(&most), []);
    let errors = inject("f", &text(&containers(65, &tcp)), &Settings::default()).unwrap_err();
    let error = &errors.as_slice()[0];
    assert_eq!((error.kind, error.line), (Kind::Probe, most.lines().count() + 2), "{error}");
    let long = |n| {
        let length = if n == 7 { 30_000 } else { 4_000 };
        format!("{{httpGet: {{port: 80, path: /{}}}}}", "x".repeat(length))
    };
    let errors = inject("f", &text(&containers(10, &long)), &Settings::default()).unwrap_err();
    let error = &errors.as_slice()[0];
    assert_eq!((error.kind, error.line), (Kind::Probe, 8 + 7 * 2 + 2), "{error}");
    assert!(error.message.contains("65536 bytes"), "{error}");
}

#[test]
fn a_place_is_one_of_the_input_also_where_a_sidecar_was_before() {
    let good = inject("f", &pod("", "image: a"), &Settings::default()).unwrap().text;
    let bad = format!("{good}    livenessProbe: {{tcpSocket: {{port: web}}}}\n");
    let errors = inject("f", &bad, &Settings::default()).unwrap_err();
    assert_eq!(errors.as_slice()[0].line, good.lines().count() + 1);
}

#[test]
fn a_manifest_that_others_wrote_anew_is_still_cleaned() {
    let original =
        pod("", "image: a\nlivenessProbe:\n  httpGet: # why\n    path: /a\n    port: 80");
    let injected = inject("f", &original, &Settings::default()).unwrap().text;
    let json = |text: &str| serde_norway::from_str::<serde_json::Value>(text).unwrap();
    // As `kubectl get -o json` has it, and at other columns.
    let rewritten = format!("{:#}", json(&injected));
    assert_eq!(json(&uninject("f", &rewritten).unwrap()), json(&original));
    let list = |pod| serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [pod]});
    let moved = serde_norway::to_string(&list(json(&injected))).unwrap();
    assert_eq!(json(&uninject("f", &moved).unwrap()), list(json(&original)));
}

#[test]
fn what_is_no_text_is_refused_with_its_line() {
    let errors = decode("f", b"a: 1\nb: \xff\n").unwrap_err();
    assert_eq!((errors.as_slice()[0].line, errors.as_slice()[0].column), (2, 4));
}
