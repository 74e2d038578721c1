"""Changes to the chat templates of known models, so that every turn can be learned.

Some models' templates drop the reasoning of earlier turns, so that the model would never learn it,
or do not separate the text that the model reads from the text that it should write. For these
models, TRL's `SFTTrainer` uses a template of its own when only the assistant's turns are learned.
The few changes below, applied to the model's own template, give the same ids and labels. A template
is recognised by the SHA-256 of its text. All other templates are used unchanged.

`{% generation %}` and `{% endgeneration %}` enclose the text that is learned.
"""

import hashlib
import re
from functools import lru_cache
from typing import NamedTuple


class Change(NamedTuple):
    """A regular expression, its replacement, and how often it must match."""

    pattern: str
    replacement: str
    times: int = 1


LEARN, STOP = "{%- generation %}", "{%- endgeneration %}"

# The header moves before the condition, which is made always true: no turn drops its reasoning.
HEADER = r"{{- '<|im_start|>' + message.role + '\\n' }}"
QWEN_THINKS = (
    Change(
        r"\{%- if [^%]*loop\.index0 > ns\.last_query_index\)? %\}",
        HEADER + LEARN + "{%- if true %}",
    ),
    Change(r"'<\|im_start\|>' \+ message\.role \+ '\\n(?=<think>)", "'"),
)
QWEN_ENDS = (Change(r'(?=\{%- elif message\.role == "tool" %\})', STOP),)
# A turn without calls is written by the same branch as one with calls, after the role's name.
QWEN_2_5 = (
    Change(r' or \(message\.role == "assistant" and not message\.tool_calls\)', ""),
    Change(
        r"\{%- if message\.content %\}",
        LEARN + "{%- if message.content or not message.tool_calls %}",
    ),
    *QWEN_ENDS,
)
NEMOTRON = (
    Change(r"(?<=\{\{- ')<\|im_start\|>assistant\\n(?!<think>)", "", 4),
    Change(
        r"(?=\{%- if message\.tool_calls is defined and )",
        r"{{- '<|im_start|>assistant\\n' }}" + LEARN,
    ),
    Change(r'(?=\{%- elif message\.role == "user" or message\.role == "system" %\})', STOP),
)
# There is one branch for turns that call a tool and one for those that do not. The assistant's
# name, or the end of a tool's output, is learned too.
DEEPSEEK = (
    Change(r"\{%- if message\['role'\] == 'assistant' and [^%]*%\}", r"\g<0>" + LEARN, 2),
    Change(
        r"(?=\{%- endif %\}\{%- if message\['role'\] == '(?:assistant' and [^%]*\bnot\b|tool'))",
        STOP,
        2,
    ),
)
# The reasoning stays in the content.
DEEPSEEK_R1 = (*DEEPSEEK, Change(r"'</think>' in content", "false"))
DEEPSEEK_V3 = (*DEEPSEEK, Change(r"tool\['function'\]\['arguments'\]", r"\g<0> | tojson", 3))
# A turn ends with the name of the role that speaks next, which then does not begin the next turn.
GLM_4_5 = (
    Change(
        r"\{% for m in messages %\}\n",
        r"""\g<0>{%- set opened = loop.previtem is defined and loop.previtem.role == 'assistant' %}
{%- if m.tool_calls %}{% set next = '<|observation|>' %}
{%- elif loop.nextitem is defined and loop.nextitem.role == 'system' %}{% set next = '<|system|>' %}
{%- else %}{% set next = '<|user|>' %}{% endif %}
""",
    ),
    Change(r"<\|user\|>(?=\n\{\{ visible_text)", "{{ '' if opened else '<|user|>' }}"),
    Change(r"<\|system\|>(?=\n\{\{ visible_text)", "{{ '' if opened else '<|system|>' }}"),
    Change(r"(?=\{%- if loop\.index0 > ns\.last_user_index and )", LEARN),
    Change(r"(?=\{%- elif m\.role == 'tool' -%\})", "{{- next }}" + STOP),
    Change(r"\{\{- '<\|observation\|>' \}\}", ""),
)
GPT_OSS = (
    Change(r'(?=\{%- if "tool_calls" in message %\})', LEARN),
    Change(r"(?=\{%- elif message\.role == 'tool' -%\})", STOP),
)
# The output of tools is inside the turn, and is not learned.
BY_THE_MODEL = (
    "{%- if role == 'model' %}" + LEARN + r"\g<0>" + STOP + r"{%- else %}\g<0>{%- endif -%}"
)
DIFFUSION_GEMMA = (
    Change(r"\{\{- '<\|channel>thought\\n' \+ thinking_text [^}]*\}\}", LEARN + r"\g<0>" + STOP),
    Change(r"\{%- for tool_call in message\.get\('tool_calls'\) -%\}", LEARN + r"\g<0>"),
    Change(r"(?=\{%- set ns\.prev_message_type = 'tool_call' -%\})", STOP),
    Change(r"\{\{- captured_content -\}\}", BY_THE_MODEL),
    Change(r"\{\{- '<turn\|>\\n' -\}\}(?=\s*\{%- endif -%\}\s*\{%- endif -%\})", BY_THE_MODEL),
)
MUSE = (
    Change(r"\{%- elif role == 'assistant' -%\}", r"\g<0>" + LEARN),
    Change(r"(?=\{%- endif -%\}\s*\{%- endfor -%\}\s*\{%- if add_generation_prompt -%\})", STOP),
)
CHANGES = {
    # Qwen 2.5; 3; 3.5, thinking or not; 3.6; 3.8
    "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f": QWEN_2_5,
    "a55ee1b1660128b7098723e0abcd92caa0788061051c62d51cbe87d9cf1974d8": (
        *QWEN_THINKS,
        Change(r"loop\.last or \(not loop\.last and reasoning_content\)", "true"),
        *QWEN_ENDS,
    ),
    "a4aee8afcf2e0711942cf848899be66016f8d14a889ff9ede07bca099c28f715": QWEN_THINKS + QWEN_ENDS,
    "273d8e0e683b885071fb17e08d71e5f2a5ddfb5309756181681de4f5a1822d80": QWEN_THINKS + QWEN_ENDS,
    "e84f32a23fdda27689f868aa4a1a5621f41133e51a48d7f3efcbea2839574259": QWEN_THINKS + QWEN_ENDS,
    "c3cf9e34abf4f9e36c2d72165aa9c132d3e2a725b6c2586aaa3a8af9d7a81041": QWEN_THINKS + QWEN_ENDS,
    # Nemotron 3 Nano, Super and Ultra; 3.5 Lightning
    "ab7813c3abdd9cb655905a410728b26c7884eca45ddfab8d9f931553485a7862": NEMOTRON,
    "575fb74f54ed264df9047d0ecce3c98938aae953fb4f50356675706264cbb68a": NEMOTRON,
    "82753bef5cedc4932c1ed509b5c9a12be680fd86d1adb65bc3f7398d11c8eebc": NEMOTRON,
    "58933db77d3099b4f78c55a38347a72e1ea05b97d6bd8f38775303dc0194e0a9": NEMOTRON,
    # DeepSeek V3; the distilled R1
    "563b1ce7d61d50a9b4c7439a912a1116f095b712df5b5e4d3e1116049874eb64": DEEPSEEK_V3,
    "56a1447ad31926fdc21fb07e56e5642bd9c850c4f52d8c8af7bbe5f079a84f5f": DEEPSEEK_R1,
    # GLM 4.5; gpt-oss; Muse Glimmer; DiffusionGemma
    "44f815868bf02fa458dd2f741a338046f4bf45f398eb6d067766726b9d96cce3": GLM_4_5,
    "a4c9919cbbd4acdd51ccffe22da049264b1b73e59055fa58811a99efbd7c8146": GPT_OSS,
    "cfc67e5f349f37690dfd31ed1f18bc4442a9dd32fe39a648f993cb4eb3cae678": MUSE,
    "9aeb7eac68ad87bba7567e9d4597ff203e5609f1b427d9e823437d0142cc61bf": DIFFUSION_GEMMA,
}


@lru_cache(maxsize=32)
def training_template(template: str) -> str | None:
    """Return the template to train with, or None if `template` is used unchanged."""
    digest = hashlib.sha256(template.encode(errors="surrogatepass")).hexdigest()
    if digest not in CHANGES:
        return None
    for change in CHANGES[digest]:
        template, times = re.subn(change.pattern, change.replacement, template)
        assert times == change.times, (digest, change.pattern, times)
    return template
