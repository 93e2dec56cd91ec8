"""The words of messages, in English and in Chinese."""

from __future__ import annotations

from collections.abc import Mapping

WORDS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "firing": "FIRING", "resolved": "RESOLVED", "event": "NEWS", "still": "STILL FIRING",
        "info": "info", "warning": "warning", "critical": "critical",
        "where": "Where", "since": "Since", "until": "Over since", "at": "At",
        "value": "Value", "threshold": "Threshold",
        "todo": "What to do", "plot": "Plot", "acknowledge": "Acknowledge",
        "repetition": "may be a repetition: the notifier was stopped while it sent this",
        "many": "{count} alerts", "and": "{title}, and {count} more", "reference": "Reference",
        "speech": "This is the trading fleet. {count} critical: {titles}. "
                  "To stop these calls, acknowledge by the link in your messages.",
        "escalated": "nobody has acknowledged it",
        "test": "A test of the notifier: nothing is wrong",
    },
    "zh": {
        "firing": "告警", "resolved": "已恢复", "event": "消息", "still": "持续告警",
        "info": "提示", "warning": "警告", "critical": "严重",
        "where": "位置", "since": "开始时间", "until": "恢复时间", "at": "时间",
        "value": "当前值", "threshold": "阈值",
        "todo": "处理方法", "plot": "曲线图", "acknowledge": "确认",
        "repetition": "可能重复：发送途中通知服务曾停止",
        "many": "{count} 条告警", "and": "{title}，另有 {count} 条", "reference": "编号",
        "speech": "这里是交易系统。有 {count} 条严重告警：{titles}。请点击消息中的链接确认，确认后不再拨打。",
        "escalated": "尚无人确认",
        "test": "通知服务测试：一切正常",
    },
}  # fmt: skip

TITLES_ZH: Mapping[str, str] = {
    # Prometheus
    "HostDown": "主机无响应",
    "HostCpuHigh": "主机 CPU 使用率过高",
    "HostMemoryHigh": "主机内存即将用尽",
    "HostDiskFull": "主机磁盘即将写满",
    "HostClockSkew": "主机时钟偏差过大",
    "InstanceDown": "应用主机上没有实例响应",
    "InstanceNotReady": "实例不接受订单",
    "NoMetrics": "没有任何实例上报指标",
    "NoServerUp": "负载均衡没有可用的应用主机",
    "OrderErrorsHigh": "订单错误率过高",
    "OrderRejectionsHigh": "订单拒绝率过高",
    "OrderLatencyHigh": "订单 P99 延迟过高",
    "PositionNearLimit": "账户接近持仓限制",
    "LeverageNearLimit": "账户接近杠杆限制",
    "MarginLevelLow": "账户保证金水平过低",
    "DrawdownNearLimit": "账户接近回撤限制",
    "AccountsLatched": "有账户因回撤只能减仓",
    "RiskUnknown": "账户风险无人检查",
    "RedisDown": "Redis 无响应",
    "NatsDown": "NATS 无响应",
    "JetStreamUnhealthy": "NATS 或其数据流不健康",
    "JetStreamLagging": "NATS 数据流落后",
    "RedisMemoryHigh": "Redis 内存即将用尽",
    "RedisMemoryUsedUp": "Redis 内存已用尽",
    "RedisSnapshotFailed": "Redis 快照写入失败",
    "JetStreamStorageHigh": "NATS 存储即将用尽",
    "OutboxGrowing": "待发布事件堆积",
    "EventsLagging": "事件到达 NATS 过慢",
    "OrdersUnknown": "有订单已发出但状态未知",
    "LedgerDifferences": "账本与审计记录不一致",
    "LedgerNotVerified": "账本长时间未核对",
    "ExecutionsDuplicated": "交易所成交超出订单数量或重复成交",
    "TradingHalted": "交易已暂停较长时间",
    "TradingDegraded": "降级模式（只减仓）已持续较长时间",
    "RolloutStuck": "灰度发布停滞",
    "TokenExpiring": "API 令牌即将到期",
    "CertificateExpiring": "证书即将到期",
    "Watchdog": "心跳告警",
    "TargetDown": "监控目标无法读取",
    "MonitoringConfigRefused": "监控配置被拒绝",
    "AlertsNotDelivered": "告警无法送出",
    "NotifierWaiting": "通知服务有消息未送达",
    "NotifierRefused": "某个渠道拒绝了消息",
    # the ledger
    "limit_approached": "接近风控限制",
    "limit_passed": "超过风控限制",
    "limit_hit": "订单因风控限制被拒",
    "drawdown_latched": "回撤超限：只能减仓",
    "drawdown_resumed": "回撤限制已由人工解除",
    "trading_halted": "交易已暂停",
    "trading_resumed": "交易已恢复",
    "trading_degraded": "已进入降级模式（只减仓）",
    "trading_undegraded": "已退出降级模式",
    "duplicate_intent": "重复下单意图被拒",
    "duplicate_id": "订单号重复且内容不同",
    # releases
    "release_start": "灰度发布开始",
    "release_stage": "灰度阶段通过",
    "release_end": "新版本已全量发布",
    "release_fail": "灰度发布失败",
    "release_rollback": "已回滚到旧版本",
    "notifier_test": "通知服务测试：一切正常",
}

_DETAILS_ZH = {
    "account": "账户", "limit": "限制", "order": "订单", "by": "操作人", "reason": "原因", "instance": "实例",
    "version": "版本", "slot": "槽位", "from": "原版本", "to": "新版本",
    "stage": "阶段", "rollout": "发布", "report": "报告",
    "mountpoint": "挂载点", "path": "路径", "stream": "数据流", "consumer": "消费者", "server": "服务器",
}  # fmt: skip


def title_of(language: str, rule: str, title: str) -> str:
    """A notice's title in this language; what has none in Chinese keeps its own."""
    return TITLES_ZH.get(rule, title) if language == "zh" else title


def detail_of(language: str, name: str) -> str:
    return _DETAILS_ZH.get(name, name) if language == "zh" else name
