from qvae.data.clock_sentences import *
from qvae.llm.words import *
from qvae.llm.vocabulary import Vocabulary
w=sentence_words(); print(len(w), w)
toks=text_tokens(["=",",",*[f":{m:02d}" for m in range(60)],*[str(h) for h in range(0,31)],*[x for x in w if not x.isdigit() and ',' not in x]])
v=Vocabulary(codebook_sizes=(16,),grid=(2,2),tokenizer_hash="x",text_size=len(toks))
t=WordTokenizer.build(toks,v)
import random
bad=0
texts=set()
for m in range(720):
    for p in PHRASINGS:
        s=phrase(m,p); assert s not in texts,s; texts.add(s)
        ids=t.encode(s+", on a pale green face =")
        if t.unk_token_id in ids: print(s,ids); bad+=1
        d=t.decode(ids)
        assert d==s+", on a pale green face =",(d,s)
        assert parse_sentence(s)==(m,None)
print(t.encode("22:10"),t.tokenizer.encode("Twenty-five past ten, = 10:25<|v_begin|><|v:00003|><|v_end|>ten").tokens, bad)
