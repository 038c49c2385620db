import torch,time,numpy as np,tempfile
from qvae.llm.vocabulary import Vocabulary
from qvae.llm.llama import Llama
from qvae.llm.words import *
from qvae.llm.folder import *
from qvae.llm.decoding import *
from qvae.types import Batch
torch.manual_seed(0)
toks=text_tokens(["=","ten",":10"])
v=Vocabulary(codebook_sizes=(16,8),grid=(2,3),tokenizer_hash="x",text_size=len(toks),repeat=6,has_rows=True)
f=torch.zeros(len(toks),4); f[-1]=torch.randn(4)
m=Llama(v,features=f,num_layers=2,dim=32,num_heads=2,hidden_dim=48).eval()
t=WordTokenizer.build(toks,v)
d=tempfile.mkdtemp()+"/m"
save_llm(m,t,d)
from transformers import AutoModelForCausalLM, AutoTokenizer
hf=AutoModelForCausalLM.from_pretrained(d); tok=AutoTokenizer.from_pretrained(d)
ids=torch.randint(0,v.size,(3,19))
a,b=m.logits(ids),hf(ids).logits
print((a-b).abs().max(), a.std(), type(hf), tok("ten = 10:10"), tok.decode(tok("ten = 10:10")["input_ids"]), hf.config.rope_parameters if hasattr(hf.config,'rope_parameters') else hf.config.rope_theta)
m2,t2=load_llm(d)
print((m2.logits(ids)-a).abs().max())
p=[[1,5,v.begin],[1,5,4,v.begin],[1,5,v.begin]]
for mm in (m,m2):
    print(draw_codes(mm,p,seed=3)[:, :6].tolist(), draw_codes(mm,p,null=[1,v.begin],guidance=2.,temperature=0)[:, :6].tolist())
    print(complete_text(mm,[[1,5],[1,5,5]],stop=[v.begin,2],max_new=5))
# greedy equality
from qvae.llm.processor import GrammarProcessor
out=hf.generate(torch.tensor([p[0]]),max_new_tokens=v.span_length-1,do_sample=False,logits_processor=[GrammarProcessor(v)],eos_token_id=[v.end])
mine=draw_codes(m,[p[0]],temperature=0)
print(v.to_tokens(out[0,2:].numpy()), mine[0])
x=torch.from_numpy(v.to_ids(mine))
